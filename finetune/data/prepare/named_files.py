"""The images that rows name by path, as part of what was prepared from them: if one appears, changes or goes, it is prepared
again. The files of a prepared entry do not tell, because a list of images stays as it is when an image changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from finetune.data.image_values import files_state

FILE = "named_files"  # in the entry: a digest of sizes, times and inodes, and the paths, each ending with a null byte
END = "\0"


def list_named_files(tables: Iterable[Any]) -> tuple[str, list[str]]:
    """(digest of sizes, times and inodes as they are now, paths) of the images that the rows of tables name.

    Images in folders of classes are not among them: their sizes and times are known by the folder's listing.
    """
    paths = list(chain.from_iterable(table.named_files() for table in tables if hasattr(table, "named_files")))
    return files_state(paths), paths


def write_named_files(folder: Path, state: str, paths: Iterable[str]) -> None:
    """Keep what list_named_files found in an entry. Writes nothing if there is no path."""
    text = "".join(path + END for path in paths)
    if text:
        (folder / FILE).write_bytes((state + END + text).encode("utf-8", "surrogatepass"))


def named_files_changed(folder: Path) -> bool:
    """Whether an image that the rows of an entry name has appeared, changed or gone since. Opens none of them."""
    try:
        content = (folder / FILE).read_bytes().decode("utf-8", "surrogatepass")
    except FileNotFoundError:
        return False
    state, *paths = content.removesuffix(END).split(END)
    return files_state(paths) != state
