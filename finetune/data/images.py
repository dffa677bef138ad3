"""Decodes one image, in any form in which datasets store it, to upright RGB. A broken image is a BadRow."""

from __future__ import annotations

import io
import os
import stat
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.data.bad_rows import BadRow
from finetune.data.image_arrays import image_of_array
from finetune.data.image_formats import decoded_formats, why_unidentified
from finetune.data.image_values import base64_bytes, image_bytes, shorten
from finetune.data.pixels import UPPER_BITS, WIDE, ValueRange, to_rgb

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 178_956_970  # 13,300 x 13,300, Pillow's own limit: guards against small files that unpack to gigabytes
LIMIT_VARIABLE = "FINETUNE_MAX_PIXELS"  # of the environment: processes that are started later have the same limit
ROTATED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
UPRIGHT = {  # EXIF orientation -> name of the transposition that turns the image upright
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
# What PIL raises for a broken file, including the exceptions that its parsers do not catch.
BROKEN = (
    AssertionError,
    AttributeError,
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    MemoryError,
    struct.error,
)
ORIENTATION = 0x0112  # EXIF tag
FRAMES = "the image has several frames or pages; the first is used"


@dataclass(frozen=True)
class Picture:
    """A decoded image.

    rgb: upright. stored_size: (width, height) of the pixels as stored. orientation: EXIF's, 1 to 8.
    notices: what was left out or changed, such as FRAMES.
    """

    rgb: Image.Image
    stored_size: tuple[int, int]
    orientation: int
    notices: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Of the upright image."""
        return self.rgb.size


@dataclass(frozen=True)
class ImageHeader:
    """What a file says of its image. size: (width, height) of the upright image. stored_size, orientation: see Picture."""

    size: tuple[int, int]
    stored_size: tuple[int, int]
    orientation: int


def allow_pixels(count: int) -> None:
    """Let this process, and those that it starts, decode files of up to `count` pixels instead of MAX_PIXELS."""
    os.environ[LIMIT_VARIABLE] = str(count)


def most_pixels() -> int:
    """Pixels of the largest file that is decoded."""
    given = os.environ.get(LIMIT_VARIABLE, "")
    return int(given) if given.isascii() and given.isdigit() else MAX_PIXELS


def decode_image(value: Any, value_range: ValueRange | None = None) -> Image.Image:
    """Decode an image to RGB, rotated upright as its EXIF data says, all pixels read.

    value: bytes, {"bytes": ..., "path": ...}, a path, a data URI, base64 text, a PIL image, or an array [h, w] or [h, w, c].
    value_range: the values that become black and white in images with more than 8 bits per channel; None: as the file says.
    Raises: BadRow if the image is corrupt, truncated, missing or of an unknown form.
    """
    return read_image(value, value_range).rgb


def read_image(value: Any, value_range: ValueRange | None = None) -> Picture:
    """As decode_image, with what else is known of the image."""
    from PIL import Image

    image = _open(value, value_range)
    try:
        several = bool(getattr(image, "is_animated", False))
        raw_mode = _raw_mode(image)
        image.load()
        _check_transparency(image, raw_mode)
        rgb, changes = to_rgb(image, value_range)
        orientation = _orientation(image)
        if orientation in UPRIGHT:
            rgb = rgb.transpose(Image.Transpose[UPRIGHT[orientation]])
            rgb.info = {}  # EXIF data among it: whoever reads the upright image again would turn it again
    except Image.DecompressionBombError as error:
        raise _too_large(value, str(error).partition(",")[0]) from error
    except BROKEN as error:
        raise BadRow(f"broken image{_name(value)}: {error}") from error
    except BadRow as bad:
        raise BadRow(f"image{_name(value)}: {bad}") from bad
    if several:
        changes += (FRAMES,)
    if ";16" in raw_mode and image.mode not in WIDE:  # 16 bits per color
        changes += (UPPER_BITS,)
    return Picture(rgb, image.size, orientation, changes)


def image_size(value: Any, value_range: ValueRange | None = None) -> tuple[int, int]:
    """(width, height) of the upright image. See read_header."""
    return read_header(value, value_range).size


def read_header(value: Any, value_range: ValueRange | None = None) -> ImageHeader:
    """Sizes and orientation of an image, its pixels not decoded. value_range: see decode_image; for arrays.

    Raises: BadRow as decode_image does, except for broken pixels.
    """
    image = _open(value, value_range)
    width, height = image.size
    orientation = _orientation(image)
    return ImageHeader((height, width) if orientation in ROTATED else (width, height), (width, height), orientation)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 (upright) if the EXIF data is broken, since the pixels are still usable."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except BROKEN:
        return 1
    return orientation if isinstance(orientation, int) else 1


def _open(value: Any, value_range: ValueRange | None) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    if isinstance(value, Image.Image):
        return value
    if hasattr(value, "dtype") or isinstance(value, list):
        return image_of_array(value, value_range)
    content = _content(value)
    try:
        if not isinstance(content, io.BytesIO) and not stat.S_ISREG(os.stat(content).st_mode):  # noqa: PTH116 - quick
            raise BadRow(f"image{_name(value)} is not a regular file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            Image.MAX_IMAGE_PIXELS = -(-most_pixels() // 2)  # Pillow refuses twice as many, also in later frames
            image = Image.open(content, formats=decoded_formats())
    except BadRow:
        raise
    except UnidentifiedImageError as error:
        raise BadRow(why_unidentified(content, _name(value))) from error
    except Image.DecompressionBombError as error:
        raise _too_large(value, str(error).partition(",")[0]) from error
    except BROKEN as error:
        reason = getattr(error, "strerror", None) or shorten(str(error))
        raise BadRow(f"image{_name(value)} cannot be opened: {reason}") from error
    if image.width * image.height > most_pixels():  # of an odd limit, Pillow takes one more
        raise _too_large(value, f"{image.width} x {image.height} pixels, more than {most_pixels():,}")
    return image


def _too_large(value: Any, size: str) -> BadRow:
    remedy = "scale it down, or, to predict, allow it with --max-pixels"
    return BadRow(f"image{_name(value)} is too large: {size}; {remedy}")


def _content(value: Any) -> io.BytesIO | str | Path:
    """What PIL can open. Raises: BadRow if the value holds no image."""
    if isinstance(value, dict):
        known = [value[key] for key in ("bytes", "path") if value.get(key) is not None]
        if not known and value and not {"bytes", "path"} & value.keys():
            raise BadRow(f"an image object must have bytes or path, not {shorten(', '.join(map(str, value)))}")
        inner = known[0] if known else None
        if isinstance(inner, str) and value.get("bytes") is not None:  # bytes in JSON
            inner = image_bytes(inner) or base64_bytes(inner)
        value = inner
    if isinstance(value, str) and value:
        inline = image_bytes(value)
        value = value if inline is None else inline
    if value is None or (isinstance(value, (bytes, bytearray, str)) and not value):
        raise BadRow("no image")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return io.BytesIO(value)
    if not isinstance(value, (str, Path)):
        raise BadRow(f"an image must be bytes or a path, not {type(value).__name__}")
    return value


def _raw_mode(image: Image.Image) -> str:
    """How the pixels of a PNG or TIFF are stored, such as "L;2" or "RGB;16B"; else "". Known only before they are loaded."""
    tile = getattr(image, "tile", None)
    if image.format not in ("PNG", "TIFF") or not tile:
        return ""
    arguments = tile[0][3]
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _check_transparency(image: Image.Image, raw_mode: str) -> None:
    """The one color of a PNG that is transparent, in the scale of its loaded pixels.

    Raises: BadRow for 16 bits per color, of which Pillow keeps 8: the color cannot be found any more.
    """
    key = image.info.get("transparency")
    if key is None:
        return
    if raw_mode == "RGB;16B":
        raise BadRow("16 bits per color with one transparent color; store it with an alpha channel, or with 8 bits")
    factor = {"L;2": 85, "L;4": 17}.get(raw_mode)
    if factor and isinstance(key, int):
        image.info["transparency"] = key * factor


def _name(value: Any) -> str:
    """A space and the path for messages, at most 100 characters; "" for bytes."""
    if isinstance(value, dict):
        value = value.get("path")
    return f" {shorten(str(value))}" if isinstance(value, (str, Path)) and str(value) else ""
