"""Tests that images of any mode, form and rotation are decoded to upright RGB, and that broken ones are bad rows."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from finetune.data.bad_rows import BadRow
from finetune.data.images import LIMIT_VARIABLE, allow_pixels, decode_image, image_size

RED = (255, 0, 0)


def saved(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def pixel(value, at=(0, 0)):
    image = decode_image(value)
    assert image.mode == "RGB"
    return image.getpixel(at)


PNG = saved(Image.new("RGB", (4, 2), RED))


def test_every_form_of_a_value(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    array = np.full((2, 4, 3), RED, np.uint8)
    for value in (
        PNG,
        memoryview(PNG),
        {"bytes": PNG, "path": None},
        {"bytes": None, "path": str(path)},
        str(path),
        path,
        Image.new("RGB", (4, 2), RED),
        array,
        array.astype(np.int64),
        array.tolist(),
    ):
        assert pixel(value) == RED and image_size(value) == (4, 2)
    assert pixel(np.full((2, 2), 7, np.uint8)) == pixel(np.full((2, 2, 1), 7, np.uint8)) == (7, 7, 7)
    assert pixel(np.full((2, 2, 4), 255, np.uint8)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("image", "form", "expected"),
    [
        (Image.new("L", (2, 2), 100), "PNG", (100, 100, 100)),
        (Image.new("1", (2, 2), 1), "PNG", (255, 255, 255)),
        (Image.new("P", (2, 2), 0), "GIF", (0, 0, 0)),
        (Image.new("RGBA", (2, 2), (255, 0, 0, 255)), "PNG", RED),
        (Image.new("RGBA", (2, 2), (255, 0, 0, 0)), "PNG", (255, 255, 255)),
        (Image.new("LA", (2, 2), (0, 0)), "PNG", (255, 255, 255)),
        (Image.fromarray(np.full((2, 2), 0x8000, np.uint16)), "PNG", (128, 128, 128)),
        (Image.fromarray(np.full((2, 2), 0x8000, np.uint16)), "TIFF", (128, 128, 128)),
        (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), "TIFF", RED),
    ],
)
def test_every_mode(image, form, expected):
    assert pixel(saved(image, form)) == expected


def test_cmyk_jpeg_is_red_and_not_its_negative():
    red, green, blue = pixel(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))
    assert red > 240 and green < 15 and blue < 15


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation):
    """A camera held sideways: the stored pixels are turned so that the top left corner is at the top left again."""
    upright = Image.new("RGB", (16, 8))
    upright.paste(RED, (0, 0, 8, 8))  # left half red
    turned = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = upright.transpose(turned) if turned is not None else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(stored, "PNG", exif=exif)
    assert image_size(data) == (16, 8) == decode_image(data).size
    assert pixel(data, (1, 4)) == RED and pixel(data, (14, 4)) == (0, 0, 0)
    again = decode_image(decode_image(data))
    assert again.size == (16, 8) and again.getpixel((1, 4)) == RED, "an upright image is not turned again"


NOISE = saved(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)))
JPEG = saved(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)), "JPEG")


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (b"not an image", "not an image"),
        (b"", "no image"),
        (None, "no image"),
        ("", "no image"),
        ({"bytes": None, "path": None}, "no image"),
        ("missing.png", "image missing.png cannot be opened: No such file"),
        (JPEG[: len(JPEG) // 2], "broken image: .*truncated"),
        (NOISE[:-30], "broken image: .*truncated"),
        (PNG[:20], "image cannot be opened: Truncated"),
        (7, "bytes or a path, not int"),
        (np.zeros((2, 2), np.float32), "0 to 255, not float32"),
        (np.full((2, 2), 300), "0 to 255, not int64"),
        (np.zeros((2, 2, 7), np.uint8), "image array"),
        ([[1, 2], [3]], "image array"),
    ],
    ids=lambda value: value if isinstance(value, str) and value else type(value).__name__,
)
def test_broken_images_are_bad_rows(value, why):
    with pytest.raises(BadRow, match=why):
        decode_image(value)


def test_the_size_needs_only_the_header(tmp_path):
    assert image_size(JPEG[:1000]) == (64, 64)
    with pytest.raises(BadRow):
        image_size(b"nothing")


def test_an_image_that_unpacks_to_gigabytes_is_refused():
    header = bytearray(PNG)
    header[16:24] = (60_000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")
    with pytest.raises(BadRow, match=r"is too large: Image size \(3600000000 pixels\).*--max-pixels"):
        decode_image(bytes(header))


def test_larger_files_are_decoded_where_they_are_allowed(monkeypatch):
    monkeypatch.setenv(LIMIT_VARIABLE, "")  # and restored after the test
    allow_pixels(64 * 64 - 1)
    for read in (decode_image, image_size):
        with pytest.raises(BadRow, match=r"64 x 64 pixels, more than 4,095"):
            read(JPEG)
    allow_pixels(2000)
    with pytest.raises(BadRow, match=r"exceeds limit of 2000 pixels"):
        decode_image(JPEG)
    allow_pixels(64 * 64)
    assert decode_image(JPEG).size == (64, 64)


@pytest.mark.filterwarnings("ignore")  # PIL warns about what it repairs
@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM"])
def test_damage_anywhere_is_a_bad_row_or_still_an_image(form):
    """Whatever PIL raises on damaged files, nothing but BadRow comes out."""
    draw, whole = np.random.default_rng(7), saved(Image.open(io.BytesIO(JPEG)), form)
    bad = 0
    for _ in range(150):
        data = bytearray(whole)
        for place in draw.integers(0, min(len(data), 400), 4):
            data[place] = draw.integers(256)
        try:
            image_size(bytes(data))
            assert decode_image(bytes(data)).mode == "RGB"
        except BadRow:
            bad += 1
    assert bad > 0


def test_real_photographs(shared_data):
    photographs = sorted((shared_data / "bccd" / "train").glob("*.jpg"))[:5]
    assert len(photographs) == 5
    for path in photographs:
        assert decode_image(str(path)).size == image_size(path)
