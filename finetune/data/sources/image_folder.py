"""Lists a folder of images with one subfolder per class, in a deterministic order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from finetune.data.formats.compression import unreadable
from finetune.data.sources.locate import display_path
from finetune.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
COLUMNS = ("image", "label")
SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "dev", "test"}

ImageEntry = tuple[str, str | None, int, int]  # (path relative to the folder, class, bytes, modification time in ns)


def list_images(folder: Path) -> list[ImageEntry]:
    """All images in a folder and its subfolders, sorted by class and name. An image outside of subfolders has no class.

    Raises: UserError as find_classes does.
    """
    return list(_walk(folder, find_classes(folder)))


def find_classes(folder: Path) -> list[str]:
    """The classes (subfolders), A to Z, without listing all files.

    Raises: UserError if there is no image, or if the subfolders are splits rather than classes.
    """
    try:
        classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] not in "._")
    except OSError as error:
        raise unreadable(folder, error) from error
    if classes and {name.lower() for name in classes} <= SPLIT_NAMES:
        raise UserError(
            f"contains splits ({', '.join(classes)}), not classes",
            where=display_path(folder),
            remedy=f"Use one of them as the source, such as {display_path(folder / classes[0])}, or set `split:`.",
        )
    if next(_walk(folder, classes), None) is None:
        raise UserError(
            "contains no images and no data file",
            where=display_path(folder),
            remedy=f"An image folder has one subfolder per class, with {', '.join(EXTENSIONS[:4])} ... files.",
        )
    return classes


def _walk(folder: Path, classes: list[str]) -> Iterator[ImageEntry]:
    try:
        for name, size, time in _images(folder, folder, recursive=False):
            yield name, None, size, time
        for label in classes:
            for name, size, time in _images(folder / label, folder, recursive=True):
                yield name, label, size, time
    except OSError as error:
        raise unreadable(folder, error) from error


def _images(folder: Path, root: Path, *, recursive: bool) -> Iterator[tuple[str, int, int]]:
    """(path relative to root, bytes, modification time in ns) of the images in a folder, sorted by name."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if recursive:
                    yield from _images(Path(entry.path), root, recursive=True)
            elif entry.name.lower().endswith(EXTENSIONS):
                stat = entry.stat()
                yield os.path.relpath(entry.path, root), stat.st_size, stat.st_mtime_ns
