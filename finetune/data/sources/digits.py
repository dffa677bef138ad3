"""scikit-learn's handwritten digits: 1,797 scanned images of 8 x 8 gray pixels, ten classes."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from typing import Any


def digit_rows(split: str) -> Iterator[dict[str, Any]]:
    """Rows {"image": PNG bytes, "label": 0 to 9}. A fifth of the digits, by a hash of their pixels, is validation."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for pixels, label in zip(digits.images, digits.target, strict=True):
        gray = np.rint(pixels * 255 / 16).astype(np.uint8)  # pixel values are counts from 0 to 16
        held_out = hashlib.blake2b(gray.tobytes(), digest_size=8).digest()[0] % 5 == 0
        if held_out == (split == "validation"):
            file = io.BytesIO()
            Image.fromarray(gray).save(file, "PNG")
            yield {"image": file.getvalue(), "label": int(label)}
