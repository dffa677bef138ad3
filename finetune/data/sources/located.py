"""What `locate` finds: the format and the files of a source."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from finetune.recipe.data import SourceSection


@dataclass(frozen=True)
class Located:
    """files: the folder of an imagefolder; empty for hub and builtin.

    notes: what a user should know about the choice of the files. left: the names of splits whose files were left out.
    split: the part of each file that is read, as the file names it; "": all of it.
    """

    format: str
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    split: str = ""

    def applied_to(self, source: SourceSection) -> SourceSection:
        """The source as readers get it: with the split that was chosen."""
        return source.model_copy(update={"split": self.split}) if self.split else source


def display_path(path: Path | str) -> str:
    """The path for messages: relative to the current folder if it is inside, else absolute."""
    full = os.path.abspath(path)  # noqa: PTH100 - resolve() would follow links and change the name
    return full.removeprefix(str(Path.cwd()) + os.sep)


def listed(names: list[str]) -> str:
    """Names in a message: all of up to four, else their number with the first and the last."""
    return ", ".join(names) if len(names) <= 4 else f"{len(names):,} files ({names[0]} ... {names[-1]})"
