"""Decodes one image, in any form in which datasets store it, to upright RGB. A broken image is a BadRow."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.data.bad_rows import BadRow

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 1 << 28  # 268 megapixels: guards against small files that unpack to gigabytes
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


def decode_image(value: Any) -> Image.Image:
    """Decode an image to RGB, rotated upright as its EXIF data says, all pixels read.

    value: bytes, {"bytes": ..., "path": ...}, a path, a PIL image, or a uint8 array [h, w] or [h, w, c].
    Transparent pixels are blended with white; of 16-bit grayscale the upper byte is kept.
    Raises: BadRow if the image is corrupt, truncated, missing or of an unknown form.
    """
    from PIL import Image

    image = _open(value)
    try:
        image.load()
        rgb, transposition = _as_rgb(image), UPRIGHT.get(_orientation(image))
        return rgb if transposition is None else rgb.transpose(Image.Transpose[transposition])
    except BROKEN as error:
        raise BadRow(f"broken image{_name(value)}: {error}") from error


def image_size(value: Any) -> tuple[int, int]:
    """(width, height) of the upright image. Reads the header only.

    Raises: BadRow as decode_image does, except for broken pixels.
    """
    image = _open(value)
    width, height = image.size
    return (height, width) if _orientation(image) in ROTATED else (width, height)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 (upright) if the EXIF data is broken, since the pixels are still usable."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except BROKEN:
        return 1
    return orientation if isinstance(orientation, int) else 1


def _open(value: Any) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    if isinstance(value, Image.Image):
        return value
    if hasattr(value, "dtype") or isinstance(value, list):
        return _from_array(value)
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if value is None or (isinstance(value, (bytes, str)) and not value):
        raise BadRow("no image")
    if isinstance(value, (bytes, bytearray, memoryview)):
        value = io.BytesIO(value)
    elif not isinstance(value, (str, Path)):
        raise BadRow(f"an image must be bytes or a path, not {type(value).__name__}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(value)
    except UnidentifiedImageError as error:
        raise BadRow(f"not an image{_name(value)}") from error
    except (*BROKEN, Image.DecompressionBombError) as error:
        raise BadRow(f"image{_name(value)} cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    if image.width * image.height > MAX_PIXELS:
        raise BadRow(f"image{_name(value)} has {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
    return image


def _from_array(value: Any) -> Image.Image:
    import numpy as np
    from PIL import Image

    try:
        pixels = np.asarray(value)
        if pixels.dtype.kind in "iu" and pixels.size and pixels.min() >= 0 and pixels.max() <= 255:
            pixels = pixels.astype(np.uint8)
        if pixels.ndim == 3 and pixels.shape[2] == 1:
            pixels = pixels[:, :, 0]
        if pixels.dtype != np.uint8:
            raise BadRow(f"an image array must hold values from 0 to 255, not {pixels.dtype}")
        return Image.fromarray(np.ascontiguousarray(pixels))
    except (TypeError, ValueError) as error:
        raise BadRow(f"an image array must be [height, width] or [height, width, channels]: {error}") from error


def _as_rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16-bit grayscale; convert("RGB") would clip it to white
        import numpy as np

        wide = np.asarray(image).astype(np.int64)
        if wide.size and wide.max() > 255:
            wide = wide >> 8
        return Image.fromarray(wide.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        background = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(background, rgba).convert("RGB")
    return image.convert("RGB")


def _name(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("path")
    return f" {value}" if isinstance(value, (str, Path)) and str(value) else ""
