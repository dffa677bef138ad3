"""Reader of object annotations in COCO format: one JSON file for many images, read as one row per image.

A row is {"image": path, "objects": {"bbox": [[x, y, width, height], ...], "category": [name, ...], "id": [...],
"iscrowd": [...]}, "image_id": ...}; boxes in pixels from the top left corner, as in COCO. Images without boxes are
rows too. The whole JSON file is held in memory while it is converted (train2017 of COCO: about 3 GB).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.formats.compression import open_binary
from finetune.data.formats.lines import NumberedRow
from finetune.errors import UserError
from finetune.recipe.data import SourceSection

ANNOTATIONS = "_annotations.coco.json"  # the name that exporters use
EXTENSION = ".coco.json"
COLUMNS = ("image", "objects")
_TABLES = ("images", "annotations", "categories")


def find_annotations(folder: Path) -> Path | None:
    """The annotation file in a folder of images: _annotations.coco.json, or the only *.coco.json; else None."""
    if (folder / ANNOTATIONS).is_file():
        return folder / ANNOTATIONS
    files = sorted(path for path in folder.glob(f"*{EXTENSION}") if path.is_file())
    return files[0] if len(files) == 1 else None


def read_coco(path: Path, source: SourceSection) -> Iterator[NumberedRow]:
    """One row per image, in the order of the file. Line numbers are 0; bad rows name the image or annotation.

    source.images: the folder that file names are relative to; default: the folder of the JSON file.
    Raises: UserError if the file is not in COCO format.
    """
    content = _load(path)
    names = {category["id"]: str(category["name"]) for category in content["categories"]}
    objects: dict[Any, list[Mapping[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        if annotation.get("image_id") not in objects:
            yield 0, BadRow(f"annotation {annotation.get('id')}: there is no image {annotation.get('image_id')!r}")
        else:
            objects[annotation["image_id"]].append(annotation)
    folder = Path(source.images).expanduser() if source.images else path.parent
    for image in content["images"]:
        row: dict[str, Any] = {"image": str(folder / str(image["file_name"])), "image_id": image["id"]}
        try:
            row["objects"] = _columns(objects[image["id"]], names)
        except BadRow as bad:
            yield 0, BadRow(f"{image['file_name']}: {bad}")
            continue
        yield 0, row


def _columns(annotations: list[Mapping[str, Any]], names: Mapping[Any, str]) -> dict[str, list[Any]]:
    """The annotations of an image as columns. Raises: BadRow for one without a box or with an unknown category."""
    columns: dict[str, list[Any]] = {"bbox": [], "category": [], "id": [], "iscrowd": []}
    for annotation in annotations:
        name = names.get(annotation.get("category_id"))
        if name is None:
            raise BadRow(f"annotation {annotation.get('id')}: there is no category {annotation.get('category_id')!r}")
        if annotation.get("bbox") is None:
            raise BadRow(f"annotation {annotation.get('id')} has no bbox")
        columns["bbox"].append(annotation["bbox"])
        columns["category"].append(name)
        columns["id"].append(annotation.get("id"))
        columns["iscrowd"].append(int(bool(annotation.get("iscrowd", 0))))
    return columns


def _load(path: Path) -> dict[str, Any]:
    remedy = "The COCO format is {images: [...], annotations: [...], categories: [...]}."
    try:
        with open_binary(path) as file:
            content = json.load(file)
    except UnicodeDecodeError as error:
        raise UserError("is not UTF-8", where=str(path), remedy="Convert it with iconv.") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"not JSON: {error.msg} at column {error.colno}",
            where=f"{path}:{error.lineno}",
            remedy="Fix the JSON syntax.",
        ) from error
    if not isinstance(content, dict):
        raise UserError("does not contain a JSON object", where=str(path), remedy=remedy)
    for table, keys in zip(_TABLES, (("id", "file_name"), ("image_id",), ("id", "name")), strict=True):
        entries = content.get(table)
        if not isinstance(entries, list):
            raise UserError(f"has no list {table!r}", where=str(path), remedy=remedy)
        for index, entry in enumerate(entries):
            missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
            if missing:
                raise UserError(f"{table}[{index}] has no {missing[0]!r}", where=str(path), remedy=remedy)
    return content
