"""Pictures of what a detector found: each image with its boxes, drawn when the output is complete.

An image is read again from the data, in its own size; so pictures are the same for any number of ranks, of tiles and of
starts, and those that are there already are not drawn again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.images import read_image
from finetune.data.sources.streams import RowStream, StreamRow
from finetune.errors import Halted, UserError
from finetune.recipe.card import TaskCard
from finetune.tasks.vision.drawing import draw_boxes, save_picture
from finetune.units import format_number

FLAG = "--draw"
MARK = ".finetune-pictures"  # in a folder of ours
NAME_CHARACTERS = 60


@dataclass
class Drawn:
    """pictures: saved now. there: those of an earlier start. without: rows that have no answer, or whose image is gone."""

    pictures: int = 0
    there: int = 0
    without: int = 0

    def describe(self, folder: Path) -> str:
        parts = [f"{format_number(self.pictures, 'picture')} drawn"]
        parts += [f"{self.there:,} were there"] if self.there else []
        parts += [f"{format_number(self.without, 'row')} without an answer"] if self.without else []
        return f"{folder}: {', '.join(parts)}"


def prepare_folder(folder: Path, card: TaskCard, stream: RowStream) -> None:
    """Make the folder of the pictures, before anything is answered.

    Raises: UserError for a task without boxes, data that cannot be read again, and a folder with files of others.
    """
    if "objects" not in card.rows.columns:
        raise UserError(f"a model of the task {card.name} finds no boxes", where=FLAG, remedy="Leave it out.")
    if not stream.resumable:
        raise UserError("standard input cannot be read again to draw", where=FLAG, remedy="Write it to a file.")
    try:
        if folder.is_dir() and not (folder / MARK).exists() and any(folder.iterdir()):
            raise UserError("has files already", where=f"{FLAG} {folder}", remedy="Give a folder of its own.")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARK).touch()
    except OSError as error:
        raise UserError(
            f"cannot be made: {error.strerror}", where=f"{FLAG} {folder}", remedy="Give another folder."
        ) from error


def draw_predictions(
    folder: Path,
    rows: Iterable[StreamRow],
    records: Iterable[Mapping[str, Any]],
    names: Sequence[str],
    value_range: Any,
) -> Drawn:
    """Draw a picture for each row with an answer. rows, records: of the same rows, in order. names: of the classes.

    Raises: Halted for a full disk.
    """
    drawn = Drawn()
    for row, record in zip(rows, records, strict=True):
        assert int(record["row"]) == row.number, f"row {row.number} beside the answer of {record['row']}"
        if record.get("boxes") is None or isinstance(row.row, BadRow):
            drawn.without += 1
            continue
        path = folder / picture_name(row)
        if path.exists():
            drawn.there += 1
            continue
        try:
            image = read_image(row.row["image"], value_range).rgb
        except BadRow:
            drawn.without += 1
            continue
        try:
            save_picture(draw_boxes(image, record["boxes"], names), path)
        except OSError as error:
            raise Halted(
                f"cannot write: {error.strerror or error}",
                where=str(path),
                remedy="All rows are answered. Free some space and run the same command again to draw the rest.",
            ) from error
        drawn.pictures += 1
    return drawn


def picture_name(row: StreamRow) -> str:
    """00000017-street_3.jpg: the number of the row, and what can stand in the name of a file of where it came from."""
    stem = Path(row.place.rpartition(":")[0] or row.place).stem if ":" in row.place else Path(row.place).stem
    image = row.row.get("image") if isinstance(row.row, Mapping) else None
    if isinstance(image, str) and len(image) < 4_096 and not image.startswith("data:"):
        stem = Path(image).stem
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", stem).strip("._-")[:NAME_CHARACTERS]
    return f"{row.number:08d}{'-' if safe else ''}{safe}.jpg"
