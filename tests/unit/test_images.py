"""Decoding of images: pixels of every format, and errors of corrupt files."""

import io
import random
import struct
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from tricklab.data.fit import Fit, Keep
from tricklab.data.images import FORMATS, decode, decode_whole_jpeg
from tricklab.errors import UserError

FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pty.spawn")


def encode(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def make_samples() -> dict[str, bytes]:
    """Return small files of every format, in several modes and compressions, by name."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 4), dtype=np.uint8)
    clear = Image.fromarray(pixels)
    color, grey = clear.convert("RGB"), clear.convert("L")
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    frames = {"save_all": True, "append_images": [color.rotate(90)]}
    float_pixels = pixels[..., 0].astype("<f4") / 255
    files = {
        "color.jpg": encode(color, "JPEG", exif=exif),
        "progressive.jpg": encode(color, "JPEG", progressive=True),
        "cmyk.jpg": encode(color.convert("CMYK"), "JPEG"),
        "two.mpo": encode(color, "MPO", **frames),
        "grey.png": encode(grey, "PNG"),
        "clear.png": encode(clear, "PNG", exif=exif),
        "palette.png": encode(clear.quantize(16), "PNG"),
        "deep.png": encode(deep, "PNG"),
        "moving.png": encode(color, "PNG", **frames),
        "color.webp": encode(color, "WEBP", exif=exif),
        "clear.webp": encode(clear, "WEBP", lossless=True),
        "color.avif": encode(color, "AVIF", exif=exif),
        "clear.avif": encode(clear, "AVIF"),
        "moving.gif": encode(clear, "GIF", **frames),
        "color.bmp": encode(color, "BMP"),
        "two.bmp": encode(color.convert("1"), "BMP"),
        "raw.tif": encode(color, "TIFF", exif=exif),
        "lzw.tif": encode(color, "TIFF", compression="tiff_lzw"),
        "jpeg.tif": encode(color, "TIFF", compression="jpeg"),
        "float.tif": encode(Image.fromarray(float_pixels), "TIFF"),
        "color.ppm": encode(color, "PPM"),
        "deep.pgm": b"P5 16 12 65535\n" + (pixels[..., 0] * np.uint16(257)).astype(">u2").tobytes(),
        "plain.pgm": b"P2 4 2 255\n" + b"1 20 255 0 7 8 9 10\n",
        "float.pfm": b"Pf\n16 12\n-1.0\n" + float_pixels.tobytes(),
    }
    return files


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Damage a file: flipped bits, a cut, added or removed bytes, another header, zeros."""
    data = bytearray(content)
    kind = rng.randrange(6)
    offset = rng.randrange(len(data))
    if kind == 0:
        for _ in range(rng.choice((1, 3, 20))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[offset:]
    elif kind == 2:
        data[offset:offset] = rng.randbytes(rng.choice((1, 4, 100)))
    elif kind == 3:
        del data[offset : offset + rng.choice((1, 4, 50))]
    elif kind == 4:
        for _ in range(rng.choice((1, 4))):
            data[rng.randrange(min(64, len(data)))] = rng.choice((0, 1, 127, 128, 255))
    else:
        data[offset : offset + 8] = bytes(8)
    return bytes(data)


def test_decode_reads_every_format(tmp_path):
    kinds = set()
    for name, content in make_samples().items():
        (tmp_path / name).write_bytes(content)
        kinds.add(Image.open(tmp_path / name).format.replace("MPO", "JPEG"))
        for mode, channels in (("RGB", 3), ("L", 1)):
            assert decode(tmp_path / name, Fit((8, 9)), mode).shape == (channels, 8, 9), name
    assert kinds == set(FORMATS)


def test_decode_of_a_thousand_damaged_files_succeeds_or_names_them(tmp_path):
    """Nothing else is raised, no process is started, and none takes long."""
    rng = random.Random(0)
    files = list(make_samples().items())
    started, messages = [], []
    decoded, slowest = 0, 0.0

    def record(event: str, arguments: tuple) -> None:
        if watching and event in FORBIDDEN:
            started.append(event)

    watching = True
    sys.addaudithook(record)
    begin = time.process_time()
    for number in range(1000):
        name, content = files[number % len(files)]
        path = tmp_path / name
        path.write_bytes(mutate(content, rng))
        before = time.process_time()
        try:
            image = decode(path, Fit((8, 8)), "RGB")
            assert image.shape == (3, 8, 8)
            assert image.dtype == torch.uint8
            decoded += 1
        except UserError as error:
            messages.append((str(path), str(error)))
        slowest = max(slowest, time.process_time() - before)
    watching = False
    assert not started
    assert all(text.startswith(f"{path} can't be decoded: ") for path, text in messages)
    assert not any("\n" in text for _, text in messages)
    assert slowest < 5
    assert time.process_time() - begin < 20
    assert 100 < decoded < 900


@pytest.mark.parametrize(
    "kind",
    ["BLP", "DDS", "EPS", "ICNS", "ICO", "IM", "JPEG2000", "MSP", "PCX", "PDF", "SGI", "TGA"],
)
def test_decode_refuses_other_formats_whatever_their_extension(tmp_path, monkeypatch, kind):
    """Their decoders are not tried: that of EPS would start Ghostscript."""
    image = Image.new("RGB", (16, 16), "red")
    mode = {"MSP": "1", "BLP": "P"}.get(kind, "RGB")
    (tmp_path / "x.png").write_bytes(encode(image.convert(mode), kind))
    for name, plugin in list(sys.modules.items()):
        if name.startswith("PIL.") and hasattr(plugin, "Ghostscript"):
            monkeypatch.setattr(plugin, "Ghostscript", lambda *a, **k: pytest.fail("started"))
    with pytest.raises(UserError, match=r"x\.png can't be decoded: not a JPEG, PNG, WEBP, AVIF, "):
        decode(tmp_path / "x.png", None, "RGB")


@pytest.mark.parametrize("kind", FORMATS)
def test_decode_looks_at_the_content_not_the_extension(tmp_path, kind):
    image = Image.new("RGB", (16, 16), "red")
    for extension in ("jpg", "png", "tif"):
        path = tmp_path / f"x.{extension}"
        path.write_bytes(encode(image, kind))
        red = decode(path, None, "RGB").float().mean((1, 2))
        assert red.tolist() == pytest.approx([255, 0, 0], abs=4)


@pytest.mark.parametrize(
    "error", [RuntimeError("two\nlines"), NotImplementedError(), MemoryError()]
)
def test_decode_names_the_file_whatever_is_raised(tmp_path, monkeypatch, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr("PIL.Image.open", fail)
    with pytest.raises(UserError) as refused:
        decode(tmp_path / "x.png", None, "RGB")
    reason = "two lines" if str(error) else type(error).__name__
    assert str(refused.value) == f"{tmp_path}/x.png can't be decoded: {reason}"


def test_decode_refuses_corrupt_tiff_tags(tmp_path, recwarn):
    """They describe the pixels: here, their compression."""
    path = tmp_path / "x.tif"
    content = make_samples()["raw.tif"]
    tag = struct.pack("<HHI", 259, 3, 1)
    assert content.count(tag) == 1
    path.write_bytes(content.replace(tag, struct.pack("<HHI", 259, 3, 9999)))
    with pytest.raises(UserError, match=r"Tag data larger than file\. Skipping tag 259"):
        decode(path, None, "RGB")
    assert not recwarn.list


def test_decode_ignores_corrupt_metadata(tmp_path, recwarn):
    """ImageNet has photographs with corrupt EXIF and intact pixels; they are decoded silently."""
    image, path = Image.new("RGB", (16, 8), "red"), tmp_path / "x"
    exif = Image.Exif()
    exif[0x010F] = "a camera of a long name"
    path.write_bytes(encode(image, "JPEG", exif=exif.tobytes()[:-10]))
    assert decode(path, None, "RGB").shape == (3, 8, 16)
    notes = PngInfo()
    notes.add_text("Raw profile type exif", "\nexif\n8\nnot hexadecimal")
    path.write_bytes(encode(image, "PNG", pnginfo=notes))
    assert decode(path, None, "RGB").shape == (3, 8, 16)
    assert not recwarn.list


RAMP = np.arange(256).reshape(16, 16)  # grey levels


@pytest.mark.parametrize(
    ("values", "extension"),
    [
        ((RAMP * 257).astype(np.uint16), "png"),
        ((RAMP * 257).astype(np.uint16), "tif"),
        ((RAMP * 257).astype(">u2"), "tif"),
        ((RAMP * 257).astype(np.int32), "tif"),
        ((RAMP / 255).astype(np.float32), "tif"),
        ((RAMP * 17).astype(np.uint16), "png"),
    ],
    ids=["16 bits", "16 bits", "big endian", "32 bits", "0 to 1", "a dark half"],
)
def test_decode_scales_more_than_8_bits(tmp_path, values, extension):
    path = tmp_path / f"x.{extension}"
    Image.fromarray(values).save(path)
    full = 1 if values.dtype.kind == "f" else 65535
    expected = torch.from_numpy((values.astype(float) / full * 255).round().astype(np.uint8))
    for mode in ("L", "RGB"):
        assert torch.equal(decode(path, None, mode)[0], expected)


def test_decode_scales_pgm_by_its_largest_value(tmp_path):
    for largest in (1023, 4095, 65535):
        values = (RAMP * largest / 255).round().astype(">u2")
        (tmp_path / "x.pgm").write_bytes(b"P5 16 16 %d\n" % largest + values.tobytes())
        assert (decode(tmp_path / "x.pgm", None, "L")[0] - torch.from_numpy(RAMP)).abs().max() <= 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (RAMP.astype(np.uint16), "its integers are 0 to 255, where 0 to 65535 is black to white"),
        (RAMP.astype(np.int32), "its integers are 0 to 255, where 0 to 65535 is black to white"),
        ((RAMP * 16).astype(np.uint16), "its integers are 0 to 4080, "),
        ((RAMP * 1000).astype(np.int32), "its integers are 0 to 255000, "),
        ((RAMP * 257 - 1).astype(np.int32), "its integers are -1 to 65534, "),
        ((RAMP * 257).astype(np.float32), "its floats are 0 to 65535, where 0 to 1 is black to"),
        (RAMP.astype(np.float32), "its floats are 0 to 255, "),
        ((RAMP / 255 - 0.5).astype(np.float32), "its floats are -0.5 to 0.5, "),
        ((RAMP * 1e-5).astype(np.float32), "its floats are 0 to 0.00255, "),
        (np.full((8, 8), np.nan, np.float32), "its floats are nan to nan, "),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
)
def test_decode_refuses_values_that_would_turn_black_or_white(tmp_path, values, message):
    Image.fromarray(values).save(tmp_path / "x.tif")
    with pytest.raises(UserError) as refused:
        decode(tmp_path / "x.tif", None, "RGB")
    assert message in str(refused.value)
    assert str(refused.value).endswith("; scale them to that, or save 8 bits")


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_decode_keeps_black_in_all_depths(tmp_path, dtype):
    Image.fromarray(np.zeros((8, 8), dtype)).save(tmp_path / "x.tif")
    assert not decode(tmp_path / "x.tif", None, "RGB").any()


@pytest.mark.parametrize(("background", "grey"), [("white", 255), ("black", 0)])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "one color"])
def test_decode_composites_onto_the_background(tmp_path, mode, background, grey):
    """The upper half is transparent; half-transparent grey is between the two."""
    pixels = np.full((8, 8, 4), (80, 80, 80, 255), np.uint8)
    pixels[:4] = (10, 10, 10, 0)
    image = Image.fromarray(pixels)
    options = {}
    if mode == "P":
        image = image.quantize(4)
    elif mode == "one color":
        image, options = image.convert("RGB"), {"transparency": (10, 10, 10)}
    else:
        image = image.convert(mode)
    image.save(tmp_path / "x.png", **options)
    for channels in ("RGB", "L"):
        decoded = decode(tmp_path / "x.png", None, channels, background)
        assert decoded[:, :4].unique().tolist() == [grey]
        assert decoded[:, 4:].unique().tolist() == [80]
    Image.new("RGBA", (8, 8), (80, 80, 80, 128)).save(tmp_path / "x.png")
    half = decode(tmp_path / "x.png", None, "L", background).float().mean().item()
    assert half == pytest.approx((80 + grey) / 2, abs=1)


def test_decode_ignores_opaque_alpha(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(tmp_path / "x.png")
    Image.fromarray(pixels).convert("RGB").save(tmp_path / "y.png")
    for mode in ("RGB", "L"):
        one, other = (decode(tmp_path / name, Fit((9, 9)), mode) for name in ("x.png", "y.png"))
        assert torch.equal(one, other)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "I;16", "F"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_rotates_upright_in_all_depths(tmp_path, mode, orientation):
    """The oracle: Pillow's own `exif_transpose` of an image of 8 bits."""
    pixels = np.zeros((6, 10), np.uint8)
    pixels[0], pixels[:, 0] = 255, 255
    pixels[5, 9] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(pixels)
    image.save(tmp_path / "x.png", exif=exif)
    with Image.open(tmp_path / "x.png") as opened:
        expected = torch.from_numpy(np.asarray(ImageOps.exif_transpose(opened)).copy())
    deep = {"I;16": pixels.astype(np.uint16) * 257, "F": pixels.astype(np.float32) / 255}
    path = tmp_path / ("y.tif" if mode == "F" else "y.png")
    (Image.fromarray(deep[mode]) if mode in deep else image.convert(mode)).save(path, exif=exif)
    assert torch.equal(decode(path, None, "L")[0], expected)


def test_whole_jpegs_have_the_pixels_of_pillow(tmp_path):
    """Of every kind that torchvision decodes, and of those that it leaves to Pillow."""
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((81, 57))
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = {
        "420": (smooth, {}),
        "444": (smooth, {"subsampling": 0}),
        "422": (smooth, {"subsampling": 1, "quality": 30}),
        "progressive": (smooth, {"progressive": True}),
        "grey": (smooth.convert("L"), {}),
        "cmyk": (smooth.convert("CMYK"), {}),
        "rotated": (smooth, {"exif": exif}),
    }
    decoded = []
    for name, (image, options) in kinds.items():
        path = tmp_path / f"{name}.jpg"
        path.write_bytes(encode(image, "JPEG", **options))
        if decode_whole_jpeg(path, 57) is not None:
            decoded.append(name)
        assert torch.equal(decode(path, Keep(57), "RGB"), decode(path, None, "RGB")), name
        assert decode_whole_jpeg(path, 56) is None  # it must be resized
    assert decoded == ["420", "444", "422", "progressive", "grey"]
    path = tmp_path / "420.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"420\.jpg can't be decoded: image file is truncated"):
        decode(path, Keep(57), "RGB")
