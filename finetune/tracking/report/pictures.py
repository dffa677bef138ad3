"""The pictures of a run as thumbnails inside the page, within a number of bytes that all of them share."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from finetune.tasks import CARDS
from finetune.tracking.run import Run

THUMBNAIL = 320  # pixels of the longer side of a sample's picture
SMALL = 160  # of those in tables
PAGE_BYTES = 350_000  # of all thumbnails of a page together
QUALITY = 72


class Thumbnails:
    """left: bytes that further pictures may take. legend: what is drawn into the pictures of the run; "" for nothing."""

    def __init__(self, run: Run, task: str, left: int = PAGE_BYTES) -> None:
        self._run, self.left = run, left
        self.legend = CARDS[task].answers.picture_legend if task in CARDS else ""

    def make(self, name: Any, pixels: int = THUMBNAIL) -> str:
        """A picture that a table of the run names, as a data URI; "" where it cannot be read, or does not fit any more."""
        picture = thumbnail(self._inside(name), pixels)
        if len(picture) > self.left:
            return ""
        self.left -= len(picture)
        return picture

    def _inside(self, name: Any) -> Path | None:
        """The file in the run's own pictures/ or a folder of it; the run may have been moved since the name was written."""
        parts = Path(name).parts if isinstance(name, str) else ()
        if "pictures" not in parts[:-1] or ".." in parts[-2:]:
            return None
        *_, folder, file = parts
        return self._run.predictions / "pictures" / ("" if folder == "pictures" else folder) / file


def thumbnail(path: Path | None, pixels: int = THUMBNAIL) -> str:
    """A picture, made small, as a data URI; "" where there is none or it cannot be read."""
    if path is None or not path.is_file():
        return ""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            image.thumbnail((pixels, pixels))
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, "JPEG", quality=QUALITY)
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
        return ""
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
