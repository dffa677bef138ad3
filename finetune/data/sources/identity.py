"""The identity of a recipe's data without reading it: names, sizes and times of files, versions of sets.

Preparation that was done for the same identity is found again in milliseconds, for any number of rows. If it changes, contents
are compared (prepare/file_digest.py), so that files that were only moved or touched are not encoded again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune.data.formats.registry import files_of
from finetune.data.prepare.file_digest import file_stat
from finetune.data.sources.locate import locate
from finetune.recipe.data import SourceSection

HUB_SECONDS = 5.0  # to ask the hub for the commit of a name


def source_identity(source: SourceSection, name: str, notify: Callable[[str], None]) -> list[Any]:
    """JSON values that change if the rows of a source for the split `name` may have changed.

    notify: see hub_commit.
    Raises: UserError if the source is missing; OSError if a file cannot be looked at.
    """
    located = locate(source, name)
    if located.format == "builtin":
        from finetune.data.sources.builtin import find_builtin

        set_name, builtin, split = find_builtin(source, name)
        return ["builtin", set_name, split, builtin.version]
    if located.format == "hub":
        return ["hub", source.source, hub_commit(source.source, source.revision, "dataset", notify)]
    if located.format == "imagefolder":
        from finetune.data.sources.image_folder import list_images

        return ["images", [[str(folder.resolve()), list_images(folder).identity()] for folder in located.files]]
    source = located.applied_to(source)
    files = (file for path in located.files for file in files_of(path, located.format, source))
    return [located.format, [[str(file.resolve()), *file_stat(file)] for file in files]]


def folder_identity(folder: Path, *, ignore: tuple[str, ...] = ()) -> list[Any]:
    """Names, sizes and times of the files directly inside a folder, except those with an extension to ignore."""
    with os.scandir(folder) as entries:
        files = sorted(entry.path for entry in entries if entry.is_file() and not entry.name.endswith(ignore))
    return [[path, *file_stat(Path(path))] for path in files]


def hub_commit(name: str, revision: str, kind: str, notify: Callable[[str], None]) -> str:
    """The commit that a revision of a hub repository stands for; the one in the local cache where the hub does not say it,
    and the revision itself if there is none. kind: "model" or "dataset".

    notify: is called with what the hub was asked in vain, and what was taken instead.
    """
    import huggingface_hub
    from huggingface_hub import constants

    why = ""
    if not constants.HF_HUB_OFFLINE:
        try:
            found = huggingface_hub.HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=HUB_SECONDS)
            return str(found.sha)
        except Exception as error:  # no network, a proxy, a private or unknown name: libraries raise what they like
            reason = (str(error).strip().splitlines() or [""])[0]
            why = ": ".join(filter(None, (type(error).__name__, reason)))
    reference = Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}" / "refs" / revision
    try:
        commit, taken = reference.read_text("utf-8").strip(), "the commit in the local cache is taken"
    except OSError:
        commit, taken = revision, "its files may have changed since they were prepared last, which is not noticed"
    if why:
        notify(f"warning: the hub does not say which commit {revision} of the {kind} {name} is ({why}): {taken}")
    return commit
