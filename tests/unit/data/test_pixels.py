"""Proves that every Pillow mode has one rule by which it becomes RGB, that dark images stay dark whatever their depth, and
that ordinary 8-bit images are what Pillow itself makes of them.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from finetune.data.bad_rows import BadRow
from finetune.data.images import FRAMES, decode_image, read_image
from finetune.data.pixels import BLENDED, NARROW, RANGED, UPPER_BITS

HALF = (255, 127, 127)  # red with alpha 128 over white


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def palette(alpha: bytes | int | None) -> Image.Image:
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    if alpha is not None:
        image.info["transparency"] = alpha
    return image


def png(bits: int, color: int, pixels: bytes, transparent: bytes) -> bytes:
    """A PNG of 2 x 1 pixels of depths that Pillow does not write, and one transparent color."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 1, bits, color, 0, 0, 0)
    key = chunk(b"tRNS", transparent) if transparent else b""
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + key
        + chunk(b"IDAT", zlib.compress(b"\0" + pixels))
        + chunk(b"IEND", b"")
    )


def tiff(bits: int, photometric: int, pixels: bytes, *, kind: int = 1) -> bytes:
    """An uncompressed little-endian TIFF of 2 x 1 pixels, one sample each. kind: 1 unsigned, 2 signed, 3 floats."""
    tags = [(256, 3, 2), (257, 3, 1), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8), (277, 3, 1)]
    tags += [(278, 3, 1), (279, 4, len(pixels)), (339, 3, kind)]
    entries = b"".join(struct.pack("<HHII", tag, form, 1, value) for tag, form, value in tags)
    data = pixels + bytes(len(pixels) % 2)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def lab_red() -> Image.Image:
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    red = ImageCms.profileToProfile(Image.new("RGB", (2, 2), (255, 0, 0)), srgb, lab, outputMode="LAB")
    assert red is not None
    return red


MODES: dict[str, tuple[bytes | Image.Image, tuple[int, int, int], str]] = {
    "1": (saved(Image.new("1", (2, 2), 1), "PNG"), (255, 255, 255), ""),
    "L": (saved(Image.new("L", (2, 2), 100), "PNG"), (100, 100, 100), ""),
    "LA": (saved(Image.new("LA", (2, 2), (0, 51)), "PNG"), (204, 204, 204), BLENDED),
    "La": (Image.new("La", (2, 2), (0, 51)), (204, 204, 204), BLENDED),
    "LA, opaque": (saved(Image.new("LA", (2, 2), (7, 255)), "PNG"), (7, 7, 7), ""),
    "P": (saved(palette(None), "PNG"), (255, 0, 0), ""),
    "P, one index transparent": (saved(palette(1), "PNG"), (255, 255, 255), BLENDED),
    "P, another index transparent": (saved(palette(0), "PNG"), (255, 0, 0), ""),
    "P, alpha of each index": (saved(palette(b"\xff\x80"), "PNG"), HALF, BLENDED),
    "P, GIF": (saved(palette(1), "GIF", transparency=1), (255, 255, 255), BLENDED),
    "PA": (palette(None).convert("PA"), (255, 0, 0), ""),
    "RGB": (saved(Image.new("RGB", (2, 2), (1, 2, 3)), "PNG"), (1, 2, 3), ""),
    "RGB, one color transparent": (
        saved(Image.new("RGB", (2, 2), (1, 2, 3)), "PNG", transparency=(1, 2, 3)),
        (255, 255, 255),
        BLENDED,
    ),
    "RGBA": (saved(Image.new("RGBA", (2, 2), (255, 0, 0, 128)), "PNG"), HALF, BLENDED),
    "RGBa": (Image.new("RGBa", (2, 2), (128, 0, 0, 128)), HALF, BLENDED),
    "RGBX": (Image.new("RGBX", (2, 2), (1, 2, 3, 4)), (1, 2, 3), ""),
    "CMYK": (saved(Image.new("CMYK", (2, 2), (0, 255, 255, 0)), "TIFF"), (255, 0, 0), ""),
    "YCbCr": (saved(Image.new("RGB", (2, 2), (90, 90, 90)).convert("YCbCr"), "TIFF"), (90, 90, 90), ""),
    "LAB": (saved(lab_red(), "TIFF"), (255, 0, 0), ""),
    "HSV": (Image.new("RGB", (2, 2), (255, 0, 0)).convert("HSV"), (255, 0, 0), ""),
    "I;16": (saved(Image.fromarray(np.full((2, 2), 0x4001, np.uint16)), "PNG"), (64, 64, 64), UPPER_BITS),
    "I;16, dark": (saved(Image.fromarray(np.full((2, 2), 250, np.uint16)), "PNG"), (0, 0, 0), f"{UPPER_BITS}|{NARROW}"),
    "I;16B": (Image.new("I;16B", (2, 2), 0x4001), (64, 64, 64), UPPER_BITS),
    "I;16L": (Image.new("I;16L", (2, 2), 0x4001), (64, 64, 64), UPPER_BITS),
    "I;16N": (Image.new("I;16N", (2, 2), 0x4001), (64, 64, 64), UPPER_BITS),
    "I;16, TIFF": (tiff(16, 1, struct.pack("<2H", 0x4001, 0)), (64, 64, 64), UPPER_BITS),
    "I;16, white is zero": (tiff(16, 0, struct.pack("<2H", 0x4001, 0)), (191, 191, 191), UPPER_BITS),
    "I;16, 12 bits": (tiff(12, 1, bytes([0x80, 0x00, 0x00])), (128, 128, 128), UPPER_BITS),
    "I;16, PGM": (b"P5 2 1 65535 " + bytes([0x40, 1, 0, 0]), (64, 64, 64), UPPER_BITS),
    "I;16, PGM to 1000": (b"P5 2 1 1000 " + (500).to_bytes(2, "big") * 2, (128, 128, 128), UPPER_BITS),
    "I;16, one value transparent": (png(16, 0, b"\x40\x01\x80\x00", b"\x40\x01"), (255, 255, 255), UPPER_BITS),
    "16 bits per color": (png(16, 2, bytes([1, 9, 2, 9, 3, 9] * 2), b""), (1, 2, 3), UPPER_BITS),
    "16 bits per color, opaque": (png(16, 6, bytes([1, 9, 2, 9, 3, 9, 255, 255] * 2), b""), (1, 2, 3), UPPER_BITS),
    "2 bits, one value transparent": (png(2, 0, b"\x60", b"\x00\x01"), (255, 255, 255), BLENDED),
    "4 bits, another transparent": (png(4, 0, b"\x3f", b"\x00\x0f"), (51, 51, 51), BLENDED),
}


@pytest.mark.parametrize("name", MODES)
def test_every_mode_has_its_rule(name: str) -> None:
    value, expected, notice = MODES[name]
    picture = read_image(value)
    seen = picture.rgb.getpixel((0, 0))
    assert picture.rgb.mode == "RGB" and np.abs(np.subtract(seen, expected)).max() <= (6 if name == "LAB" else 0), seen
    assert "|".join(picture.notices) == notice


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "TIFF", "PPM"])
def test_ordinary_images_are_what_pillow_makes_of_them(mode: str, form: str) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (19, 23, 3), np.uint8)
    data = saved(Image.fromarray(noise).convert(mode), form)
    assert decode_image(data).tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def test_the_same_light_gives_the_same_pixels_in_any_image() -> None:
    """A dark 16-bit image and a bright one with one dark pixel: the dark pixels are equal."""
    dark = np.full((4, 4), 200, np.uint16)
    bright = np.full((4, 4), 60_000, np.uint16)
    bright[0, 0] = 200
    for pack in (lambda array: saved(Image.fromarray(array), "PNG"), lambda array: array):
        assert decode_image(pack(dark)).getpixel((0, 0)) == decode_image(pack(bright)).getpixel((0, 0)) == (0, 0, 0)
        assert decode_image(pack(bright)).getpixel((3, 3)) == (234, 234, 234)
    color = np.full((4, 4, 3), 200, np.uint16)
    assert decode_image(color).getpixel((0, 0)) == (0, 0, 0)


UNDECIDED = {
    "floats to 1": (saved(Image.new("F", (2, 2), 0.5), "TIFF"), "floats from 0.5 to 0.5", [0.0, 1.0], 128),
    "floats to 255": (saved(Image.new("F", (2, 2), 100.0), "TIFF"), r"such as \[0, 255\]", [0.0, 255.0], 100),
    "floats, white is zero": (tiff(32, 0, struct.pack("<2f", 0.25, 0), kind=3), "floats", [0.0, 1.0], 191),
    "32 bits": (
        saved(Image.new("I", (2, 2), 70_000), "TIFF"),
        r"32-bit integers .* such as \[0, 70000\]",
        [0.0, 140_000.0],
        128,
    ),
    "signed 16 bits": (tiff(16, 1, struct.pack("<2h", -1000, 0), kind=2), r"\[-1000, 1\]", [-1000.0, 1000.0], 0),
    "PFM": (b"Pf\n2 1\n-1.0\n" + struct.pack("<2f", 0.5, 0.5), "floats", [0.0, 1.0], 128),
}


@pytest.mark.parametrize("name", UNDECIDED)
def test_what_the_file_does_not_say_is_refused_or_given(name: str) -> None:
    data, why, value_range, gray = UNDECIDED[name]
    with pytest.raises(BadRow, match=why) as told:
        decode_image(data)
    assert "options.value_range" in str(told.value)
    picture = read_image(data, (value_range[0], value_range[1]))
    assert picture.rgb.getpixel((0, 0)) == (gray, gray, gray) and picture.notices == (RANGED,)


def test_a_range_goes_for_16_bits_and_arrays_too_and_not_for_8_bits() -> None:
    twelve = Image.fromarray(np.full((2, 2), 2048, np.uint16))
    assert decode_image(saved(twelve, "PNG"), (0, 4095)).getpixel((0, 0)) == (128, 128, 128)
    assert decode_image(np.full((2, 2), 0.5), (0, 1)).getpixel((0, 0)) == (128, 128, 128)
    assert decode_image([[2048, 9000]], (0, 4095)).getpixel((1, 0)) == (255, 255, 255)
    assert decode_image(saved(Image.new("L", (2, 2), 9), "PNG"), (0, 4095)).getpixel((0, 0)) == (9, 9, 9)


def test_pixels_that_are_no_numbers() -> None:
    with pytest.raises(BadRow, match="not finite numbers"):
        decode_image(saved(Image.new("F", (2, 2), float("nan")), "TIFF"), (0, 1))


def test_a_transparent_color_that_pillow_has_cut_is_refused() -> None:
    with pytest.raises(BadRow, match="16 bits per color with one transparent color"):
        decode_image(png(16, 2, bytes(12), bytes(6)))


@pytest.mark.parametrize("form", ["GIF", "PNG", "TIFF", "WEBP"])
def test_of_several_frames_the_first_is_used_and_reported(form: str) -> None:
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    options = {"lossless": True} if form == "WEBP" else {}
    picture = read_image(saved(first, form, save_all=True, append_images=[second], **options))
    assert picture.rgb.getpixel((1, 1)) == (255, 0, 0) and picture.notices == (FRAMES,)
    assert read_image(saved(first, form)).notices == ()
