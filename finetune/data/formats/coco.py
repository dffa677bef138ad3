"""Reader of object annotations in COCO format: one JSON file for many images, read as one row per image.

A row is {"image": path, "objects": {"bbox": [[x, y, width, height], ...], "category": [name, ...], "id": [...],
"iscrowd": [...]}, "image_id": ..., "width": ..., "height": ...}; boxes in pixels from the top left corner, as in COCO.
Images without boxes are rows too. The whole JSON file is held in memory while it is converted (train2017 of COCO: about 3 GB).
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from finetune.data.bad_rows import BadRow, UnusedCategory
from finetune.data.formats.annotations import NOTICES
from finetune.data.formats.compression import READ_ERRORS, open_binary
from finetune.data.formats.lines import NumberedRow
from finetune.errors import UserError
from finetune.recipe.data import SourceSection
from finetune.recipe.user_path import user_path

ANNOTATIONS = "_annotations.coco.json"  # the name that exporters use
EXTENSION = ".coco.json"
REPEATED_ID = "an annotation id occurs more than once in the file"
_TABLES = ("images", "annotations", "categories")

HEAD_BYTES = 1 << 20  # by which a file is recognized
_FIRST_KEY = re.compile(r'\s*\{\s*"(info|licenses?|images|annotations|categories|type|videos)"\s*:')
_FIRST_ENTRIES = tuple(
    re.compile(rf'"{table}"\s*:\s*\[\s*\{{[^{{}}]*"{key}"\s*:')
    for table, key in (("images", "file_name"), ("annotations", "image_id"), ("categories", "name"))
)


def find_annotations(folder: Path) -> Path | None:
    """The annotation file in a folder of images: _annotations.coco.json, or the only *.coco.json; else None."""
    if (folder / ANNOTATIONS).is_file():
        return folder / ANNOTATIONS
    files = sorted(path for path in folder.glob(f"*{EXTENSION}") if path.is_file())
    return files[0] if len(files) == 1 else None


def is_coco(path: Path) -> bool:
    """Whether a JSON file begins as one in COCO format: one object, whose first key COCO has, with a table of its kind.

    Reads no more than the first megabyte.
    """
    try:
        with open_binary(path) as file:
            start = file.read(HEAD_BYTES).decode("utf-8-sig", "replace")
    except READ_ERRORS:
        return False
    return _FIRST_KEY.match(start) is not None and any(pattern.search(start) for pattern in _FIRST_ENTRIES)


def read_coco(path: Path, source: SourceSection) -> Iterator[NumberedRow]:
    """One row per image, in the order of the file. Line numbers are 0; bad rows name the image or annotation.

    Before the rows: an UnusedCategory for each category without a box.

    source.images: the folder that file names are relative to; default: the folder of the JSON file.
    Raises: UserError if the file is not in COCO format, two categories cannot be distinguished, or an image lies outside of
    the folder.
    """
    content = _load(path)
    names = _category_names(path, content)
    shared = _shared_names(names)
    yield from ((0, UnusedCategory(name)) for name in _unused_names(names, content))
    objects: dict[Any, list[Mapping[str, Any]]] = {_key(image["id"]): [] for image in content["images"]}
    seen: Counter[Any] = Counter(_key(annotation.get("id")) for annotation in content["annotations"])
    for annotation in content["annotations"]:
        image_id = annotation.get("image_id")
        if _key(image_id) not in objects:
            like = next((key for key in objects if str(key) == str(image_id)), None)
            but = f", but one with the id {like!r}: write ids as numbers only" if like is not None else ""
            yield 0, BadRow(f"annotation {annotation.get('id')}: there is no image {image_id!r}"[:300] + but)
        else:
            objects[_key(image_id)].append(annotation)
    folder = _image_folder(path, source)
    files = [_image_path(path, folder, index, image["file_name"]) for index, image in enumerate(content["images"])]
    ids, listed = Counter(_key(image["id"]) for image in content["images"]), Counter(map(os.path.normpath, files))
    for image, file in zip(content["images"], files, strict=True):
        annotations = objects[_key(image["id"])]
        row: dict[str, Any] = {"image": file, "image_id": image["id"]}
        row.update({key: image[key] for key in ("width", "height") if image.get(key) is not None})
        try:
            if ids[_key(image["id"])] > 1:
                raise BadRow(f"several images have the id {image['id']!r}, so its annotations are ambiguous")
            if (times := listed[os.path.normpath(file)]) > 1:
                raise BadRow(f"the file is listed {times} times, so each entry has only some of its boxes")
            row["objects"] = _columns(annotations, names)
        except BadRow as bad:
            yield 0, BadRow(f"{image['file_name']}: {bad}"[:300])
            continue
        notices = list(
            dict.fromkeys(shared[key] for one in annotations if (key := _key(one.get("category_id"))) in shared)
        )
        if any(annotation.get("id") is not None and seen[_key(annotation["id"])] > 1 for annotation in annotations):
            notices.append(REPEATED_ID)
        if notices:
            row[NOTICES] = notices
        yield 0, row


def read_asked(path: Path, source: SourceSection) -> Iterator[NumberedRow]:
    """One row per image, for images that are only asked: there need be neither annotations nor categories.

    Rows are those of read_coco, without "objects" where the annotations of an image cannot be used.
    Raises: UserError if the file has no list of images, or one lies outside of the folder.
    """
    content = _load(path, optional=("annotations", "categories"))
    annotated = bool(content["annotations"])
    names = _category_names(path, content)
    objects: dict[Any, list[Mapping[str, Any]]] = {_key(image["id"]): [] for image in content["images"]}
    for annotation in content["annotations"]:
        objects.get(_key(annotation["image_id"]), []).append(annotation)
    ids = Counter(_key(image["id"]) for image in content["images"])
    folder = _image_folder(path, source)
    for index, image in enumerate(content["images"]):
        row: dict[str, Any] = {"image": _image_path(path, folder, index, image["file_name"]), "image_id": image["id"]}
        row.update({key: image[key] for key in ("width", "height") if image.get(key) is not None})
        if annotated and ids[_key(image["id"])] == 1:
            with suppress(BadRow):
                row["objects"] = _columns(objects[_key(image["id"])], names)
        yield 0, row


def _columns(annotations: list[Mapping[str, Any]], names: Mapping[Any, str]) -> dict[str, list[Any]]:
    """The annotations of an image as columns. Raises: BadRow for one without a box or with an unknown category."""
    columns: dict[str, list[Any]] = {"bbox": [], "category": [], "id": [], "iscrowd": []}
    for annotation in annotations:
        category = annotation.get("category_id")
        name = names.get(_key(category))
        if name is None:
            raise BadRow(f"annotation {annotation.get('id')}: there is no category {category!r}")
        if annotation.get("bbox") is None:
            other = "; a segmentation alone is not read" if annotation.get("segmentation") else ""
            raise BadRow(f"annotation {annotation.get('id')} has no bbox{other}")
        crowd = annotation.get("iscrowd") or 0
        columns["bbox"].append(annotation["bbox"])
        columns["category"].append(name)
        columns["id"].append(annotation.get("id"))
        columns["iscrowd"].append(int(crowd) if isinstance(crowd, bool) else crowd)
    return columns


def _key(value: Any) -> Any:
    """An id as a key: 3 and 3.0 are the same, 1 and true are not, and lists are ids of nothing."""
    return value if isinstance(value, (str, int, float)) and not isinstance(value, bool) else repr(value)


def _category_names(path: Path, content: Mapping[str, Any]) -> dict[Any, str]:
    """Category id -> name. Raises: UserError for two categories with the same id, or with the same name and both in use."""
    names: dict[Any, str] = {}
    for index, category in enumerate(content["categories"]):
        key, name = _key(category["id"]), category["name"]
        if not isinstance(name, (str, int)) or isinstance(name, bool) or not str(name).strip():
            raise UserError(
                f"categories[{index}] has the name {name!r}", where=str(path), remedy="Give each category a name."
            )
        if key in names and names[key] != str(name):
            raise UserError(
                f"the category id {category['id']!r} has two names, {names[key]!r} and {str(name)!r}",
                where=str(path),
                remedy="Give each category an id of its own.",
            )
        names[key] = str(name)
    used: dict[str, Any] = {}
    for key in dict.fromkeys(_key(annotation.get("category_id")) for annotation in content["annotations"]):
        if key in names and used.setdefault(names[key].strip(), key) != key:
            raise UserError(
                f"the categories {used[names[key].strip()]!r} and {key!r} are both named {names[key]!r}",
                where=str(path),
                remedy="Rename one of them, or use one id for both if they are one class.",
            )
    return names


def _unused_names(names: Mapping[Any, str], content: Mapping[str, Any]) -> list[str]:
    """Names of categories that no annotation has, under any of their ids."""
    used = {names[key] for one in content["annotations"] if (key := _key(one.get("category_id"))) in names}
    return [name for name in dict.fromkeys(names.values()) if name not in used]


def _shared_names(names: Mapping[Any, str]) -> dict[Any, str]:
    """Category id -> a notice, for ids whose name another id has, too: another file may use that one for the same class."""
    ids: dict[str, list[Any]] = {}
    for key, name in names.items():
        ids.setdefault(name.strip(), []).append(key)
    several = {name: ", ".join(map(repr, keys)) for name, keys in ids.items() if len(keys) > 1}
    return {
        key: f"the categories {several[name]} are all named {name!r}; boxes of this file are of {key!r} alone"[:300]
        for name in several
        for key in ids[name]
    }


def _image_folder(path: Path, source: SourceSection) -> Path:
    """The absolute path of the folder of the images: a relative one would be taken as relative to the JSON file."""
    folder = user_path(source.images) if source.images else path.parent
    return Path(os.path.abspath(folder))  # noqa: PTH100 - resolve() would follow links


def _image_path(path: Path, folder: Path, index: int, file_name: Any) -> str:
    """The path of an image, inside of the image folder.

    A name with ".." that leaves it may be relative to the JSON file instead.
    Raises: UserError if both lie outside of the folder. Links are not followed: what they name is inside.
    """
    if not isinstance(file_name, str) or not file_name.strip():
        raise UserError(
            f"images[{index}] has the file_name {file_name!r}"[:300], where=str(path), remedy="Name a file."
        )
    inside = os.path.abspath(folder)  # noqa: PTH100 - resolve() would follow links
    for base in (folder, Path(os.path.abspath(path.parent))):  # noqa: PTH100
        if os.path.abspath(base / file_name).startswith(os.path.join(inside, "")):  # noqa: PTH100, PTH118
            return str(base / file_name)
    raise UserError(
        f"images[{index}] names a file outside of the image folder: {file_name[:200]}",
        where=str(path),
        remedy=f"Set `images:` of the source to a folder that contains all images (now {folder}).",
    )


def _load(path: Path, optional: Collection[str] = ()) -> dict[str, Any]:
    """The content, checked. optional: tables that are empty where they are missing."""
    remedy = "The COCO format is {images: [...], annotations: [...], categories: [...]}."
    try:
        with open_binary(path) as file:
            content = json.load(file)
    except UnicodeDecodeError as error:
        raise UserError("is not UTF-8", where=str(path), remedy="Convert it with iconv.") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}",
            where=f"{path}:{error.lineno}",
            remedy="Fix the JSON syntax.",
        ) from error
    if not isinstance(content, dict):
        raise UserError("does not contain a JSON object", where=str(path), remedy=remedy)
    for table, keys in zip(_TABLES, (("id", "file_name"), ("image_id",), ("id", "name")), strict=True):
        entries = content.setdefault(table, []) if table in optional else content.get(table)
        if not isinstance(entries, list):
            raise UserError(f"has no list {table!r}", where=str(path), remedy=remedy)
        for index, entry in enumerate(entries):
            missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
            if missing:
                raise UserError(f"{table}[{index}] has no {missing[0]!r}", where=str(path), remedy=remedy)
    return content
