"""What a user should know about the splits of a recipe together: files in two of them, validation data that is not used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from finetune.data.sources.locate import locate
from finetune.data.sources.located import display_path, listed
from finetune.data.split_names import split_of
from finetune.recipe.data import DataSection, SourceSection
from finetune.recipe.user_path import user_path


def split_notes(data: DataSection) -> Iterator[str]:
    """One line each. Raises: UserError as locate does."""
    train = _files("train", data.train)
    for name, sources in (("validation", data.validation), ("test", data.test)):
        same = [display_path(path) for identity, path in _files(name, sources).items() if identity in train]
        if same:
            yield f"{name} reads files that train also reads: {listed(same)}"
    if not data.validation:
        for source in data.train:
            if any(split_of(label) == "validation" for label in locate(source, "train").left):
                where = display_path(user_path(source.source))
                yield f"{where} has validation data that is not used; data.validation: {where} evaluates on it"


def _files(name: str, sources: Sequence[SourceSection]) -> dict[tuple[int, int, str], Path]:
    """The files of a split by what they are on disk, links followed, and by the part of them that is read."""
    found = [
        (path, located.split) for source in sources for located in [locate(source, name)] for path in located.files
    ]
    return {(stat.st_dev, stat.st_ino, part): path for path, part in found if path.exists() for stat in [path.stat()]}
