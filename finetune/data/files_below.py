"""The files in a folder and its subfolders, without hidden ones and the clutter of operating systems."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from finetune.data.image_formats import can_decode

CLUTTER = {"thumbs.db", "desktop.ini", "icon\r", "__macosx"}  # of operating systems; like hidden files never looked at


def files_below(
    folder: Path, *, recursive: bool, above: tuple[str, ...] = (), walked: set[Path] | None = None
) -> Iterator[tuple[Path, bool]]:
    """(path, whether it is an image by its name) of the files in a folder, sorted by name, without hidden ones.

    above: the real paths of the folders that this one lies in, so that links in a circle are not followed.
    walked: gets all folders that are looked at.
    Raises: OSError.
    """
    above = (*above, os.path.realpath(folder)) if recursive else ()
    if walked is not None:
        walked.add(folder)
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith(".") or entry.name.lower() in CLUTTER:
                continue
            if entry.is_dir():
                if recursive and not (entry.is_symlink() and os.path.realpath(entry.path) in above):
                    yield from files_below(Path(entry.path), recursive=True, above=above, walked=walked)
            else:
                path = Path(entry.path)
                yield path, can_decode(path.suffix)
