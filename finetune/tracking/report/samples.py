"""The samples of a run: what the model said of the same examples before and after training, with pictures as thumbnails."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from finetune.tracking.journal import list_tables, read_table
from finetune.tracking.report.tables import shorten
from finetune.tracking.run import Run

THUMBNAIL = 320  # pixels of the longer side
PICTURE_BYTES = 350_000  # of all thumbnails of a page together
QUALITY = 72
EMPTY = "(empty)"
REPLIES = ("chosen", "rejected", "reply")  # that a sample is about, besides the prompt

Sample = dict[str, Any]


def pair_samples(run: Run) -> list[Sample]:
    """One entry per sample, with what is known of it: "turns": (speaker, words) of a conversation, or "input"; "replies": name
    -> text of the replies that it has; "expected", "before", "after", an empty reply as EMPTY; "pictures": {"before",
    "after"} -> a data URI; "missing": pictures that are left out.
    """
    pairs: dict[str, Sample] = {}
    budget = PICTURE_BYTES
    files = [path for path, name, _ in list_tables(run.tables) if name == "samples"]
    for path in files:
        try:
            columns, rows = read_table(path)
        except (OSError, ValueError):
            continue
        for row in rows:
            cells = dict(zip(columns, row, strict=False))
            pair = pairs.setdefault(str(cells.get("id", len(pairs))), {"pictures": {}, "replies": {}, "missing": 0})
            when = str(cells.get("when") or ("before" if path == files[0] and len(files) > 1 else "after"))
            pair.update({key: _said(cells[key]) for key in ("input", "expected") if key in cells})
            pair["replies"] |= {key: _said(cells[key]) for key in REPLIES if key in cells}
            pair["turns"] = _turns(cells.get("turns"))
            pair[when] = _said(cells.get("predicted", ""))
            picture = thumbnail(_inside(run, cells.get("picture")))
            if picture and len(picture) <= budget:
                pair["pictures"][when] = picture
                budget -= len(picture)
            elif cells.get("picture"):
                pair["missing"] += 1
    return list(pairs.values())


def _turns(value: Any) -> list[tuple[str, str]]:
    """[["user", "Hi."]] as JSON -> [("user", "Hi.")]; [] for anything else."""
    try:
        return [(str(speaker), _said(words)) for speaker, words in json.loads(value or "[]")]
    except (ValueError, TypeError):
        return []


def _said(value: Any) -> str:
    text = shorten(value)
    return text if text.strip() else EMPTY


def _inside(run: Run, name: Any) -> Path | None:
    """The file in the run's own pictures/ or a folder of it; the run may have been moved since the name was written."""
    if not isinstance(name, str) or "pictures" not in Path(name).parts:
        return None
    *_, folder, file = Path(name).parts
    return run.predictions / "pictures" / ("" if folder == "pictures" else folder) / file


def thumbnail(path: Path | None) -> str:
    """A picture of the run, made small, as a data URI; "" where there is none or it cannot be read."""
    if path is None or not path.is_file():
        return ""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, "JPEG", quality=QUALITY)
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
        return ""
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
