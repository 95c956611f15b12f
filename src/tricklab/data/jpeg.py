"""The header of a JPEG: whether any decoder turns it into the same pixels as Pillow."""

import struct

START = b"\xff\xd8"
FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive, Huffman-coded
TABLES = (0xC4, 0xDB, 0xDD)  # Huffman and quantisation tables, restart interval
JFIF, ICC, COMMENT = 0xE0, 0xE2, 0xFE  # no effect on the pixels
SCAN = 0xDA
MAX_PIXELS = 2**26  # fewer than those that Pillow takes for an attack


def read_plain_sides(content: bytes | bytearray) -> tuple[int, int] | None:
    """Return height and width of a plain JPEG: 8 bits, grey or three colors, JFIF.

    None: another image, an EXIF (which may rotate it), marks of other color spaces, damage. The
    header is a sequence of segments (ITU-T T.81, B.1.1.4): 0xFF, a marker, a length of two bytes
    that counts itself, and the content.
    """
    if not content.startswith(START):
        return None
    sides = None
    position = len(START)
    try:
        while True:
            start, marker, length = struct.unpack_from(">BBH", content, position)
            if marker == SCAN:
                return sides
            if start != 0xFF or marker not in (*FRAMES, *TABLES, JFIF, ICC, COMMENT):
                return None
            if marker in FRAMES:
                bits, height, width, colors = struct.unpack_from(">BHHB", content, position + 4)
                if bits != 8 or colors not in (1, 3) or not 0 < height * width <= MAX_PIXELS:
                    return None
                sides = height, width
            position += 2 + length
    except struct.error:  # the content ends within the header
        return None
