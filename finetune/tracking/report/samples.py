"""The samples of a run: what the model answered to the same examples before and after training, with thumbnails of pictures."""

from __future__ import annotations

import json
from typing import Any

from finetune.tracking.journal import list_tables, read_table
from finetune.tracking.report.pictures import Thumbnails
from finetune.tracking.report.tables import shorten
from finetune.tracking.run import Run

EMPTY = "(empty)"
REPLIES = ("chosen", "rejected", "reply")  # that a sample is about, besides the prompt

Sample = dict[str, Any]


def pair_samples(run: Run, thumbnails: Thumbnails) -> list[Sample]:
    """One entry per sample, with what is known of it: "turns": (speaker, words) of a conversation, or "input"; "replies": name
    -> text of the replies that it has; "expected", "before", "after", an empty reply as EMPTY; "pictures": {"before",
    "after"} -> a data URI, or {"input"} where nothing is drawn into them; "missing": pictures that are left out.
    """
    pairs: dict[str, Sample] = {}
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
            _add_picture(pair, when if thumbnails.legend else "input", cells.get("picture"), thumbnails)
    return list(pairs.values())


def _add_picture(pair: Sample, place: str, name: Any, thumbnails: Thumbnails) -> None:
    if place in pair["pictures"] or not name:
        return
    if picture := thumbnails.make(name):
        pair["pictures"][place] = picture
    else:
        pair["missing"] += 1


def _turns(value: Any) -> list[tuple[str, str]]:
    """[["user", "Hi."]] as JSON -> [("user", "Hi.")]; [] for anything else."""
    try:
        return [(str(speaker), _said(words)) for speaker, words in json.loads(value or "[]")]
    except (ValueError, TypeError):
        return []


def _said(value: Any) -> str:
    text = shorten(value)
    return text if text.strip() else EMPTY
