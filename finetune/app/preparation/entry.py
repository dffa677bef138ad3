"""Entries of prepared data in the cache: found by name, checked, and marked as in use. No torch here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.app.preparation.request import FORMAT, KIND, Names
from finetune.data.prepare.cache import find_entry, is_intact, touch
from finetune.data.prepare.cache_removal import put_aside
from finetune.data.prepare.locks import use
from finetune.data.prepare.named_files import named_files_changed
from finetune.terminal import print_line

MANIFEST = "prepared.json"


def find_prepared(names: Names) -> Path | None:
    """The folder of the published entry, marked as in use by this process; None if there is none."""
    for name in dict.fromkeys((names.new, names.resumed)):
        folder = find_entry(KIND, name, print_line)
        manifest = read_manifest(folder) if folder is not None else None
        if folder is None or manifest is None:
            continue
        if any(manifest["kept"].get(key) != value for key, value in names.kept.items()):
            continue
        if named_files_changed(folder):
            _discard(folder, manifest)
            continue
        if not mark_used(folder):
            _discard(folder, manifest)
            continue
        return folder
    return None


def mark_used(folder: Path) -> bool:
    """Mark an entry, and the entries that belong to it, as in use by this process, now. False if one of them is gone, or
    damaged.
    """
    manifest = read_manifest(folder)
    parts = [Path(part) for part in manifest["entries"]] if manifest is not None else []
    damaged = [part for part in parts if not is_intact(part, print_line)]  # all of them are reported
    if manifest is None or damaged:
        return False
    if not all(use(part) for part in (*parts, folder)):
        return False
    for part in parts:
        touch(part)
    return True


def _discard(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Remove an entry whose images or parts have changed or gone, unless another process has replaced it meanwhile."""
    if read_manifest(folder) == manifest:
        put_aside(folder)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What was prepared; None if it cannot be read."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text("utf-8"))
        return manifest if manifest["format"] == FORMAT else None
    except (OSError, ValueError, KeyError):
        return None
