"""Lists a folder of images with one subfolder per class, in a deterministic order, and says what it leaves out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.data.files_below import CLUTTER, files_below
from finetune.data.formats.compression import unreadable
from finetune.data.sources.locate import display_path
from finetune.data.split_names import split_of
from finetune.errors import UserError

COLUMNS = ("image", "label")
SHOWN = 10  # extensions or folders named in one message

# (path relative to the folder, class, bytes, modification time and change time in ns, inode)
ImageEntry = tuple[str, str | None, int, int, int, int]


@dataclass
class ImageListing:
    """images: sorted by class and name. unread: extension -> number of other files. first_unread: one of them.

    left_out: subfolders that are no classes, such as _old. nested: images below the folder of their class.
    """

    images: list[ImageEntry] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)
    first_unread: str = ""
    left_out: list[str] = field(default_factory=list)
    nested: int = 0

    def identity(self) -> list[Any]:
        """JSON values that change with what is read or left out."""
        return [self.images, sorted(self.unread.items()), self.first_unread, self.left_out]

    def notices(self) -> list[str]:
        """What was left out, a line each."""
        lines = []
        if self.unread:
            count = self.unread.total()
            files = "1 file is" if count == 1 else f"{count:,} files are"
            lines.append(f"{files} left out, of no format that is read: {_counted(self.unread)} ({self.first_unread})")
        if self.left_out:
            lines.append(f"hidden folders with images are left out: {_shown(self.left_out)}")
        if self.nested:
            images = "1 image lies" if self.nested == 1 else f"{self.nested:,} images lie"
            lines.append(f"{images} in folders below a class folder; the first level is the class")
        return lines


def list_images(folder: Path) -> ImageListing:
    """All images in a folder and its subfolders. An image outside of subfolders has no class.

    Raises: UserError as find_classes does.
    """
    listing = ImageListing()
    try:
        for label in (None, *find_classes(folder)):
            start = folder if label is None else folder / label
            for path, is_image in files_below(start, recursive=label is not None):
                name = os.path.relpath(path, folder)
                if is_image:
                    stat = path.stat()
                    times = stat.st_mtime_ns, stat.st_ctime_ns
                    listing.images.append((name, label, stat.st_size, *times, stat.st_ino))
                    listing.nested += label is not None and path.parent != start
                else:
                    listing.unread[path.suffix.lower() or "no extension"] += 1
                    listing.first_unread = listing.first_unread or name
        listing.left_out = [name for name in _hidden_folders(folder) if _has_images(folder / name)]
    except OSError as error:
        raise unreadable(folder, error) from error
    return listing


def find_classes(folder: Path) -> list[str]:
    """The classes (subfolders), A to Z, without listing all files.

    Raises: UserError if there is no image, if a class has none, or if subfolders are splits rather than classes.
    """
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        classes = [name for name in names if name[0] not in "._" and name.lower() not in CLUTTER]
        _refuse_splits(folder, classes)
        empty = [name for name in classes if not _has_images(folder / name)]
        loose = any(is_image for _, is_image in files_below(folder, recursive=False))
    except OSError as error:
        raise unreadable(folder, error) from error
    if not loose and len(empty) == len(classes):
        unread = Counter(_contents(folder, "")) + Counter(kind for name in classes for kind in _contents(folder, name))
        raise UserError(
            "contains no images and no data file" + (f", but {_counted(unread)}" if unread else ""),
            where=display_path(folder),
            remedy="An image folder has one subfolder per class, with .jpg, .jpeg, .png, .webp ... files.",
        )
    if empty:
        _refuse_yolo(folder, classes)
        contents = [f"{name} ({_counted(Counter(_contents(folder, name))) or 'empty'})" for name in empty]
        raise UserError(
            f"{len(empty)} of {len(classes)} classes have no image that can be read: {_shown(contents)}",
            where=display_path(folder),
            remedy="Convert the files to JPEG or PNG, or remove the folder, or put an underscore before its name.",
        )
    return classes


def _refuse_yolo(folder: Path, names: Sequence[str]) -> None:
    """Raises: UserError for images/ beside labels/ with text files."""
    if set(names) == {"images", "labels"} and set(_contents(folder, "labels")) <= {".txt", ".cache"}:
        raise UserError(
            "looks like a YOLO data set (images/ beside labels/ with .txt files), but has no data.yaml that names its classes",
            where=display_path(folder),
            remedy="Write one: `train:` and `val:` with the folders of images, and `names:` (docs/your-data.md, YOLO).",
        )


def _refuse_splits(folder: Path, names: Sequence[str]) -> None:
    """Raises: UserError if subfolders are splits: all of them, or train and another one, or one with classes in it."""
    splits = [name for name in names if split_of(name)]
    kinds = {split_of(name) == "train" for name in splits}
    if not splits or (
        len(splits) < len(names) and len(kinds) < 2 and not any(_holds_classes(folder / s) for s in splits)
    ):
        return
    others = [name for name in names if name not in splits]
    beside = f" beside other folders ({_shown(others)})" if others else ""
    raise UserError(
        f"contains splits ({', '.join(splits)}){beside}, not classes",
        where=display_path(folder),
        remedy=f"Use one of them as the source, such as {display_path(folder / splits[0])}, or set `split:`.",
    )


def _holds_classes(folder: Path) -> bool:
    """Does a folder have images in its subfolders only?"""
    return not any(is_image for _, is_image in files_below(folder, recursive=False)) and _has_images(folder)


def _has_images(folder: Path) -> bool:
    return any(is_image for _, is_image in files_below(folder, recursive=True))


def _contents(folder: Path, name: str) -> Iterator[str]:
    """The extension of each file in a subfolder; of the folder itself for "", not recursively."""
    for path, _ in files_below(folder / name, recursive=bool(name)):
        yield path.suffix.lower() or "no extension"


def _hidden_folders(folder: Path) -> list[str]:
    return sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.is_dir() and entry.name[0] in "._" and entry.name.lower() not in CLUTTER
    )


def _counted(kinds: Counter[str]) -> str:
    """.heic 3, .txt 1"""
    return _shown([f"{kind} {count:,}" for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item[0]))])


def _shown(items: Sequence[str]) -> str:
    return ", ".join(items[:SHOWN]) + (f", ... and {len(items) - SHOWN} more" if len(items) > SHOWN else "")
