"""Reader of YOLO data sets: images, and beside each a text file with a line `class x y width height` per object.

A row is {"image": path, "objects": {"bbox": [[x, y, width, height], ...], "category": [name, ...], "id": ["line 1", ...],
"box_format": "normalized_cxcywh"}}: the center and the size of a box as fractions of the upright image. The labels of
images/train/1.jpg are in labels/train/1.txt; where no folder is called images, beside the image. An image without that
file has no objects, as in Ultralytics' YOLO.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.formats.annotations import BOX_FORMAT, NOTICES
from finetune.data.formats.lines import NumberedRow
from finetune.data.formats.yolo_listing import list_split
from finetune.data.formats.yolo_yaml import NAME, DataYaml
from finetune.data.values import to_number
from finetune.errors import UserError
from finetune.recipe.data import SourceSection

FORM = "normalized_cxcywh"
POLYGON = "labels are polygons: the box around each is learned, its outline is not used"
KEYPOINTS = "labels have keypoints: they are not used"
_NUMBERS = 5  # class, x, y, width, height
_SHOWN = 3


def read_yolo(path: Path, source: SourceSection) -> Iterator[NumberedRow]:
    """One row per image, sorted by name within each folder. Line numbers are 0; bad rows name the file of labels and its line.

    path: data.yaml. source.split: the key of the split in it.
    Raises: UserError if the file, a folder or a list of images cannot be used, or no image has labels.
    """
    described, listing = list_split(path, source.split)
    _check_labels(path, listing.images)
    for image in listing.images:
        yield 0, _row(image, described)


def read_asked(path: Path, source: SourceSection) -> Iterator[NumberedRow]:
    """One row per image, for images that are only asked: without "objects" where labels cannot be used or are missing.

    Raises: UserError as read_yolo does, but for labels.
    """
    described, listing = list_split(path, source.split)
    for image in listing.images:
        row = _row(image, described) if label_file(image).is_file() else {"image": str(image)}
        yield 0, {"image": str(image)} if isinstance(row, BadRow) else row


def yolo_files(path: Path, source: SourceSection) -> list[Path]:
    """All files that rows are made of: data.yaml, lists, images, and the labels that exist."""
    _, listing = list_split(path, source.split)
    labels = (file for image in listing.images if (file := label_file(image)).is_file())
    return [path, *listing.lists, *listing.images, *labels]


def yolo_notes(path: Path, source: SourceSection) -> list[str]:
    """What a user should know of the files of a split: images without labels, labels without an image, what is not read."""
    described, listing = list_split(path, source.split)
    images, unread = listing.images, listing.unread
    expected = {label_file(image) for image in images}
    present = _label_files({file.parent for file in expected})
    without = [image for image in images if label_file(image) not in present]
    orphans = sorted(present - expected)
    notes = list(described.notes)
    if without:
        notes.append(
            f"{len(without):,} of {len(images):,} images have no file of labels and are taken as images without objects "
            f"({_shown(without)})"
        )
    if orphans:
        notes.append(f"{len(orphans):,} files of labels have no image and are not used ({_shown(orphans)})")
    if unread:
        notes.append(
            "files beside the images are not read: " + ", ".join(f"{kind} {n:,}" for kind, n in unread.items())
        )
    return notes


def label_file(image: Path) -> Path:
    """The labels of an image: the last folder called images is labels, and the extension .txt."""
    head, found, tail = str(image).rpartition(f"{os.sep}images{os.sep}")
    return Path(f"{head}{os.sep}labels{os.sep}{tail}" if found else image).with_suffix(".txt")


def _check_labels(path: Path, images: Sequence[Path]) -> None:
    """Raises: UserError if no image has labels: they lie elsewhere."""
    if not any(label_file(image).is_file() for image in images):
        raise UserError(
            f"none of {len(images):,} images has labels",
            where=str(path),
            remedy=f"Those of {images[0]} are looked for in {label_file(images[0])}.",
        )


def _label_files(folders: set[Path]) -> set[Path]:
    """The .txt files in folders, without the list of classes that some tools write."""
    names = ("classes.txt", "notes.txt")
    return {
        Path(entry.path)
        for folder in folders
        if folder.is_dir()
        for entry in os.scandir(folder)
        if entry.name.endswith(".txt") and entry.name not in names
    }


def _row(image: Path, described: DataYaml) -> dict[str, Any] | BadRow:
    file = label_file(image)
    objects: dict[str, Any] = {"bbox": [], "category": [], "id": [], BOX_FORMAT: FORM}
    notices: dict[str, None] = {}
    try:
        text = file.read_text("utf-8-sig") if file.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        return BadRow(f"{file}: cannot be read: {error}"[:300])
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            name, box, notice = _parse(line.split(), described.names, described.keypoints)
        except BadRow as bad:
            return BadRow(f"{file}:{number}: {bad}"[:500])
        objects["category"].append(name)
        objects["bbox"].append(box)
        objects["id"].append(f"line {number}")
        notices |= {notice: None} if notice else {}
    return {"image": str(image), "objects": objects, **({NOTICES: list(notices)} if notices else {})}


def _parse(cells: list[str], names: Mapping[int, str], keypoints: int) -> tuple[str, list[float], str]:
    """(name of the class, [x, y, width, height], notice) of a line. Raises: BadRow."""
    try:
        numbers = [to_number(cell) for cell in cells]
    except ValueError:
        raise BadRow(f"{' '.join(cells)[:80]!r} holds what is not a number") from None
    if not all(map(math.isfinite, numbers)):
        raise BadRow(f"{' '.join(cells)[:80]!r} holds what is not a finite number")
    if numbers[0] not in names:
        known = f"{min(names)} to {max(names)}" if len(names) > 1 else str(min(names))
        raise BadRow(f"class {cells[0]}, but the classes of {NAME} are {known}")
    name, values = names[int(numbers[0])], numbers[1:]
    if len(numbers) == _NUMBERS:
        return name, values, ""
    if keypoints and len(numbers) == _NUMBERS + keypoints:
        return name, values[:4], KEYPOINTS
    if len(numbers) >= _NUMBERS + 2 and len(values) % 2 == 0 and not keypoints:
        return name, _around(values), POLYGON
    hint = "; the last may be a score: predictions are no labels" if len(numbers) == _NUMBERS + 1 else ""
    raise BadRow(f"{len(numbers)} numbers, not class, x, y, width, height{hint}")


def _around(polygon: list[float]) -> list[float]:
    """The box around points [x, y, x, y, ...]: [center x, center y, width, height]."""
    left, right = min(polygon[::2]), max(polygon[::2])
    top, bottom = min(polygon[1::2]), max(polygon[1::2])
    return [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]


def _shown(paths: list[Path]) -> str:
    names = ", ".join(path.name for path in paths[:_SHOWN])
    return names + (", ..." if len(paths) > _SHOWN else "")
