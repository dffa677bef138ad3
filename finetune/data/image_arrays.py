"""Arrays of pixels as images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune.data.bad_rows import BadRow
from finetune.data.pixels import ValueRange, scale_values, unknown_range

if TYPE_CHECKING:
    from PIL import Image


def image_of_array(value: Any, value_range: ValueRange | None) -> Image.Image:
    """An array [h, w] or [h, w, c] as an image. value_range: the values that become black and white; None: 0 to 255, and
    16-bit grayscale as it is. Raises: BadRow for other shapes and values.
    """
    import numpy as np
    from PIL import Image

    try:
        pixels = np.asarray(value)
        if pixels.ndim == 3 and pixels.shape[2] == 1:
            pixels = pixels[:, :, 0]
        if pixels.dtype == np.uint16 and value_range is None:
            if pixels.ndim == 2:
                return Image.fromarray(np.ascontiguousarray(pixels))  # 16-bit grayscale, however dark it is
            pixels = (pixels >> 8).astype(np.uint8)
        if pixels.dtype != np.uint8 and value_range is not None and pixels.dtype.kind in "iuf":
            pixels = scale_values(pixels, value_range)
        elif pixels.dtype.kind in "iu" and pixels.size and pixels.min() >= 0 and pixels.max() <= 255:
            pixels = pixels.astype(np.uint8)
        if pixels.dtype != np.uint8:
            if pixels.dtype.kind in "iuf" and pixels.size:
                hint = f"; {unknown_range(pixels, str(pixels.dtype))}"
            else:
                hint = ""
            if pixels.dtype.kind in "USO":
                raise BadRow("an image is one path, bytes or an array of numbers, not a list of texts or other values")
            raise BadRow(f"an image array must hold values from 0 to 255, not {pixels.dtype}{hint}")
        return Image.fromarray(np.ascontiguousarray(pixels))
    except (TypeError, ValueError) as error:
        raise BadRow(f"an image array must be [height, width] or [height, width, channels]: {error}") from error
