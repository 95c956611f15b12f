"""The header of JPEGs: those that are plain are decoded as Pillow does, by any decoder."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image

from tricklab.data.fit import Keep
from tricklab.data.images import decode
from tricklab.data.jpeg import MAX_PIXELS, read_plain_sides


def encode(mode="RGB", size=(40, 24), **options):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (size[1] // 4 + 1, size[0] // 4 + 1, 3), np.uint8)
    image = Image.fromarray(pixels).resize(size).convert(mode)
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(exif=exif)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mode": "L"},
        {"progressive": True},
        {"subsampling": 0, "quality": 100},
        {"comment": "x" * 300, "icc_profile": b"profile" * 20},
        {"restart_marker_blocks": 2},
        {"optimize": True, "size": (1, 3)},
    ],
)
def test_plain_jpegs_have_their_sides_and_the_pixels_of_pillow(tmp_path, options):
    content = encode(**options)
    (tmp_path / "x.jpg").write_bytes(content)
    with Image.open(io.BytesIO(content)) as image:
        assert read_plain_sides(content) == (image.height, image.width)
        expected = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(decode(tmp_path / "x.jpg", Keep(64), "RGB"), expected)


def test_other_images_are_not_plain():
    png = io.BytesIO()
    Image.new("RGB", (4, 4)).save(png, "PNG")
    adobe = encode()[:2] + b"\xff\xee\x00\x0eAdobe\x00d\x00\x00\x00\x00\x00" + encode()[2:]
    late_exif = encode()
    scan = late_exif.index(b"\xff\xda")
    late_exif = late_exif[:scan] + b"\xff\xe1\x00\x08Exif\x00\x00" + late_exif[scan:]
    for content in (png.getvalue(), encode("CMYK"), rotated(), adobe, late_exif, b"", b"\xff\xd8"):
        assert read_plain_sides(content) is None


def test_huge_images_are_not_plain():
    content = bytearray(encode())
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
    assert MAX_PIXELS < 65535**2
    assert read_plain_sides(content) is None


def test_every_truncated_header_is_refused():
    content = encode()
    scan = content.index(b"\xff\xda")
    assert all(read_plain_sides(content[:end]) is None for end in range(scan + 1))


def test_changed_headers_are_refused_or_decoded_as_pillow_does(tmp_path):
    """One to three bytes before the first scan."""
    rng = random.Random(0)
    content = encode(size=(8, 8))
    scan = content.index(b"\xff\xda")
    plain = 0
    for _ in range(3000):
        changed = bytearray(content)
        for _ in range(rng.randint(1, 3)):
            changed[rng.randrange(scan)] = rng.randrange(256)
        sides = read_plain_sides(changed)
        if sides is None:
            continue
        try:
            with Image.open(io.BytesIO(changed)) as image:
                size = image.height, image.width
                is_plain = image.mode in ("RGB", "L") and "exif" not in image.info
        except Exception:  # damage further on, which both decoders refuse
            continue
        assert sides == size
        assert is_plain
        plain += 1
    assert plain > 500
