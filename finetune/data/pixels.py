"""Maps the pixels of an image of any Pillow mode to RGB, by the same rule for every image of a data set.

The rule depends on what the file says (mode, bits per sample) and on the recipe, never on the values of one image, so a
dark image stays darker than a bright one. docs/your-data.md has the table.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from finetune.data.bad_rows import BadRow

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

ValueRange = tuple[float, float]  # (value that becomes black, value that becomes white)

BACKGROUND = "white"  # under transparent pixels
CONVERTED = ("1", "L", "P", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")  # by Pillow's own formulas
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
WIDE = (*SIXTEEN_BITS, "I", "F")  # more than 8 bits per pixel, in one channel
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # TIFF tags, and a value of the second

BLENDED = f"transparent pixels are blended with {BACKGROUND}"
UPPER_BITS = "the image has more than 8 bits per channel; values are divided by 256 (12 bits: by 16)"
NARROW = (
    "the image has 16 bits per pixel, but no value uses more than 12: it becomes almost black. If this is not intended, "
    "set options.value_range for the whole data set"
)
RANGED = "the image has more than 8 bits per channel; options.value_range is mapped to 0..255"


def to_rgb(image: Image.Image, value_range: ValueRange | None = None) -> tuple[Image.Image, tuple[str, ...]]:
    """(the image in mode RGB, what was done to its pixels: BLENDED, UPPER_BITS, NARROW, RANGED).

    image: its pixels are loaded. value_range: for more than 8 bits per channel; None: as the file says.
    Raises: BadRow for a mode without a rule, and for 32-bit integers or floats without value_range.
    """
    if image.mode in WIDE:
        return _from_wide(image, value_range)
    if image.has_transparency_data:
        return _blend(image)
    if image.mode == "RGB":
        return image, ()
    if image.mode not in CONVERTED:
        raise BadRow(f"pixels of mode {image.mode} cannot be converted to RGB")
    return image.convert("RGB"), ()


def scale_values(values: np.ndarray, value_range: ValueRange) -> np.ndarray:
    """Values -> uint8: linear between the ends of the range, clipped beyond them. Raises: BadRow for NaN and infinity."""
    import numpy as np

    exact = values.astype(np.float64)
    if not np.isfinite(exact).all():
        raise BadRow("the image has pixels that are not finite numbers")
    low, high = value_range
    return ((exact - low) * (255 / (high - low))).round().clip(0, 255).astype(np.uint8)


def unknown_range(values: np.ndarray, kind: str) -> BadRow:
    """For values of which nothing says what is black and white. kind: what they are, such as "floats"."""
    import numpy as np

    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    white = next((white for white in (1, 255, 4095, 65535) if high <= white), math.ceil(high))
    return BadRow(
        f"pixels are {kind} from {low:.4g} to {high:.4g}, and the file does not define which values are black and white; "
        f"set options.value_range for the whole data set, such as [{math.floor(min(low, 0))}, {white}]"
    )


def _from_wide(image: Image.Image, value_range: ValueRange | None) -> tuple[Image.Image, tuple[str, ...]]:
    """One channel of 16 bits, 32-bit integers or floats."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image)
    notices: tuple[str, ...] = (RANGED,)
    if value_range is not None:
        gray = scale_values(values, value_range)
    else:
        bits = _bits(image)
        if bits is None:
            raise unknown_range(values, "32-bit integers" if image.mode == "I" else "floats")
        gray = (values.astype(np.int64) >> (bits - 8)).clip(0, 255).astype(np.uint8)
        narrow = bits == 16 and values.max(initial=0) < 1 << 12
        notices = (UPPER_BITS, NARROW) if narrow else (UPPER_BITS,)
    if _tag(image, PHOTOMETRIC) == WHITE_IS_ZERO:  # Pillow inverts only 8 bits and less
        gray = 255 - gray
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray = np.where(values == transparent, np.uint8(255), gray)
    return Image.fromarray(gray).convert("RGB"), notices


def _bits(image: Image.Image) -> int | None:
    """Bits of the file's values; None if only their values could tell."""
    if image.mode in SIXTEEN_BITS:
        return 12 if _tag(image, BITS_PER_SAMPLE) == 12 else 16
    # PNG and PGM with more than 8 bits, in the mode that Pillow has for both; their values are scaled to 16 bits.
    return 16 if image.mode == "I" and image.format in ("PNG", "PPM") else None


def _tag(image: Image.Image, tag: int) -> int | None:
    """The first value of a TIFF tag; None for other formats."""
    values: Any = getattr(image, "tag_v2", {}).get(tag)
    return values if isinstance(values, int) else next(iter(values or ()), None)


def _blend(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """Transparent pixels blended with the background."""
    from PIL import Image

    rgba = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
    extrema: Any = rgba.getextrema()
    if extrema[3][0] == 255:  # an alpha channel, all of it opaque
        return rgba.convert("RGB"), ()
    background = Image.new("RGBA", rgba.size, BACKGROUND)
    return Image.alpha_composite(background, rgba).convert("RGB"), (BLENDED,)
