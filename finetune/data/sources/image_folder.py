"""A folder of images, one sub-folder a class: what lies in it, in an order that is the same everywhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from finetune.data.formats.lines import unreadable
from finetune.data.sources.locate import shown
from finetune.errors import UserError

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
COLUMNS = ("image", "label")
SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test"}

Listed = tuple[str, str | None, int, int]  # (path relative to the folder, class, bytes, time in ns)


def list_images(folder: Path) -> list[Listed]:
    """Every image below a folder, classes A to Z, files A to Z. An image in no sub-folder has no class.

    Raises: UserError as look_at does.
    """
    return list(_walk(folder, look_at(folder)))


def look_at(folder: Path) -> list[str]:
    """The classes, A to Z, without walking through all files.

    Raises: UserError if there is no image, or the sub-folders are splits rather than classes.
    """
    try:
        classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] not in "._")
    except OSError as error:
        raise unreadable(folder, error) from error
    if classes and {name.lower() for name in classes} <= SPLITS:
        raise UserError(
            f"holds splits ({', '.join(classes)}), not classes",
            where=shown(folder),
            remedy=f"Name one as the source, such as {shown(folder / classes[0])}, or set `split:`.",
        )
    if next(_walk(folder, classes), None) is None:
        raise UserError(
            "holds no images and no data file",
            where=shown(folder),
            remedy=f"An image folder has one sub-folder a class, with {', '.join(ENDINGS[:4])} ... in it.",
        )
    return classes


def _walk(folder: Path, classes: list[str]) -> Iterator[Listed]:
    try:
        for name, size, time in _images(folder, folder, deep=False):
            yield name, None, size, time
        for label in classes:
            for name, size, time in _images(folder / label, folder, deep=True):
                yield name, label, size, time
    except OSError as error:
        raise unreadable(folder, error) from error


def _images(folder: Path, root: Path, *, deep: bool) -> Iterator[tuple[str, int, int]]:
    """(path relative to root, bytes, time) of the images in a folder, and below it if deep."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if deep:
                    yield from _images(Path(entry.path), root, deep=True)
            elif entry.name.lower().endswith(ENDINGS):
                stat = entry.stat()
                yield os.path.relpath(entry.path, root), stat.st_size, stat.st_mtime_ns
