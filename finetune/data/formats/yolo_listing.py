"""The images of a split of a YOLO data set: folders and lists that data.yaml names, walked once for all who ask."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from finetune.data.files_below import files_below
from finetune.data.formats.compression import unreadable
from finetune.data.formats.yolo_yaml import DataYaml, read_yaml
from finetune.data.image_formats import can_decode
from finetune.errors import UserError

_OURS = (".txt", ".cache", ".npy", ".json")  # files beside images that YOLO's tools leave there
_SETTLED_NS = 2_000_000_000  # a folder that changed this shortly before it was walked may change again at the same time


@dataclass(frozen=True)
class Listing:
    """images: absolute. lists: text files that name some of them. unread: extension -> other files beside them."""

    images: tuple[Path, ...]
    lists: tuple[Path, ...]
    unread: Counter[str]


@dataclass(frozen=True)
class _Kept:
    """times: of modification of each folder that was walked, in ns."""

    key: tuple[Path, str, tuple[Path, ...]]
    listing: Listing
    times: dict[Path, int]


_kept: list[_Kept] = []  # of the last split


def list_split(path: Path, split: str) -> tuple[DataYaml, Listing]:
    """What data.yaml says, and the images of a split: of folders and below them, or of the lines of a text file.

    Folders that have not changed since the last call are not walked again. path: data.yaml.
    Raises: UserError if it, a folder or a list of images cannot be used.
    """
    described = read_yaml(path)
    places = tuple(described.places(split))
    key = path, split, places
    for kept in _kept:
        if kept.key == key and _times(kept.times) == kept.times:
            return described, kept.listing
    began, walked = time.time_ns(), set[Path]()
    listing = _list(described, split, places, walked)
    times = _times(walked)
    is_settled = not listing.lists and all(when < began - _SETTLED_NS for when in times.values())
    _kept[:] = [_Kept(key, listing, times)] if is_settled else []
    return described, listing


def _times(folders: Iterable[Path]) -> dict[Path, int]:
    found = {}
    for folder in folders:
        try:
            found[folder] = folder.stat().st_mtime_ns
        except OSError:
            found[folder] = 0
    return found


def _list(described: DataYaml, split: str, places: Iterable[Path], walked: set[Path]) -> Listing:
    images: dict[Path, None] = {}
    lists, unread = [], Counter[str]()
    for place in places:
        try:
            if place.is_dir():
                found = _below(place, unread, walked)
            else:
                found = _listed(place, described)
                lists.append(place)
        except (OSError, UnicodeDecodeError) as error:
            raise unreadable(place, error) from error
        if not found:
            raise UserError(f"{split}: {place} has no image that can be read", where=str(described.file))
        images.update(dict.fromkeys(Path(os.path.abspath(image)) for image in found))  # noqa: PTH100 - keeps links
    return Listing(tuple(images), tuple(lists), unread)


def _below(folder: Path, unread: Counter[str], walked: set[Path]) -> list[Path]:
    found = []
    for path, is_image in files_below(folder, recursive=True, walked=walked):
        if is_image:
            found.append(path)
        elif path.suffix.lower() not in _OURS:
            unread[path.suffix.lower() or "no extension"] += 1
    return found


def _listed(file: Path, described: DataYaml) -> list[Path]:
    """The images that a text file names, a line each: relative to it, or to the folder of the data set."""
    if can_decode(file.suffix):
        return [file]
    if file.suffix.lower() != ".txt":
        raise UserError(f"{file} is neither a folder, an image nor a .txt file", where=str(described.file))
    lines = [line.strip() for line in file.read_text("utf-8-sig").splitlines()]
    return [
        next((path for base in (file.parent, described.root) if (path := base / line).is_file()), file.parent / line)
        for line in lines
        if line
    ]
