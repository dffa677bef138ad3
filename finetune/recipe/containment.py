"""A folder that may come from a stranger: everything that is read or written there lies inside it.

Of a run folder, links that lead out would have its verbs write into files elsewhere (`logs`, `evaluations`), or read
what the folder's author cannot see. Pipes and devices would have them wait for ever. A training follows the links of its own
run folder: whoever starts it has made them. The folder beside the output of a prediction is looked at in the same way.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from finetune.errors import UserError
from finetune.recipe.trust import OPTION, is_trusted

UNREAD = ("wandb",)  # W&B's own files, which link to its logs in the home folder; no verb reads them
TRUST = f"Put the file or folder itself there; or, if you trust the run, add {OPTION}."


def check_contained(
    folder: Path,
    *,
    what: str = "the run folder",
    remedy: str = TRUST,
    odd_remedy: str = "Remove it: runs consist of files.",
) -> None:
    """Raises: UserError for a link out of `folder`, and for what is neither a file nor a folder; for links not if the
    command line has --trust-remote-code.

    what: the folder, for the message. remedy: for a link. odd_remedy: for what is neither a file nor a folder.
    """
    root = folder.resolve()
    for entry in _entries(root):
        path = Path(entry.path)
        if entry.is_symlink():
            if not is_trusted() and not _stays(path, root):
                raise UserError(
                    f"{what} has a link that leads out of it, which is not followed",
                    where=f"{path} -> {os.readlink(path)}",  # noqa: PTH115 - as it is written
                    remedy=remedy,
                )
        elif not entry.is_dir(follow_symlinks=False) and not _is_file(entry):
            raise UserError(
                f"{what} holds something that is neither a file nor a folder", where=str(path), remedy=odd_remedy
            )


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether it is a regular file, or one that somebody has removed meanwhile."""
    try:
        return stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return True


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Everything below a folder; links are not followed."""
    waiting = [str(folder)]
    while waiting:
        place = waiting.pop()
        try:
            entries = list(os.scandir(place))
        except OSError:  # unreadable: whoever needs what is in it says so
            continue
        for entry in entries:
            if place == str(folder) and entry.name in UNREAD and not entry.is_symlink():
                continue
            yield entry
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)


def _stays(link: Path, root: Path) -> bool:
    try:
        return link.resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # a circle of links
        return False
