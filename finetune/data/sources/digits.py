"""scikit-learn's handwritten digits: 1,797 real images of 8 x 8 grey pixels, ten classes."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from typing import Any


def digit_rows(split: str) -> Iterator[dict[str, Any]]:
    """{"image": PNG bytes, "label": 0 to 9}; one digit in five, by a hash of its pixels, is validation."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for pixels, label in zip(digits.images, digits.target, strict=True):
        grey = np.rint(pixels * 255 / 16).astype(np.uint8)  # the scanner counted 0 to 16 black dots a cell
        held = hashlib.blake2b(grey.tobytes(), digest_size=8).digest()[0] % 5 == 0
        if held == (split == "validation"):
            file = io.BytesIO()
            Image.fromarray(grey).save(file, "PNG")
            yield {"image": file.getvalue(), "label": int(label)}
