"""The data that an evaluation reads, and the folder that it writes. No torch here."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.data.sources.preflight import check_data
from finetune.data.sources.read_options import asked_sources
from finetune.data.sources.tables import open_split, open_tables
from finetune.data.table import Table
from finetune.errors import Fault, UserError
from finetune.recipe.data import SourceSection
from finetune.recipe.recipe import Recipe
from finetune.recipe.user_path import user_path
from finetune.tasks import CARDS
from finetune.tracking.run import Run

CHOOSE_SPLIT = "A split of other data is chosen by --split test --set data.test='{source: FILE, split: NAME}'."
OTHER = "data"  # the name of a table that is no split of the recipe


def check_evaluated_data(recipe: Recipe, split: str, data: Sequence[str], read: Sequence[str] = ()) -> None:
    """Raises: UserError if the recipe has no such split, or its rows or columns are not there. Only what is evaluated is
    looked at: the training data may be gone.
    """
    sources, name = _sources(recipe, split, data, read), OTHER if data else split
    if sources is None:  # held out of the training data by a hash of each row
        sources, name = recipe.data.train, "train"
    section = recipe.data.model_copy(
        update={"train": sources, "validation": (), "test": (), "validation_fraction": 0.0}
    )
    faults = check_data(recipe.model_copy(update={"data": section}), CARDS[recipe.task], as_split=name)
    held_out = not data and sources is recipe.data.train and split != "train"
    if faults and held_out:
        raise UserError(
            f"the rows of {split} are held out of the run's training data, which cannot be read: {faults[0].message}",
            where=faults[0].value,
            remedy="Bring the training data back, or evaluate other data: --data FILE.",
        )
    if faults:
        of_columns = any(".columns." in fault.key for fault in faults)
        raise UserError(
            "the data cannot be evaluated:" + "".join(f"\n    {_describe(fault)}" for fault in faults),
            where="--data" if data else f"data.{split}",
            remedy="A column of another name is given by --set data.columns.ROLE=COLUMN, other files by --data FILE."
            if of_columns
            else CHOOSE_SPLIT
            if data and any("`split:`" in fault.message for fault in faults)
            else "",
        )


def _describe(fault: Fault) -> str:
    """On one line, with the file. Its key is none of the recipe's where other data is evaluated."""
    named = not fault.value or Path(fault.value).name in fault.message
    there = f" (there is {fault.allowed})" if fault.allowed else ""
    return (fault.message if named else f"{fault.value}: {fault.message}") + there


def open_evaluated_table(recipe: Recipe, split: str, data: Sequence[str], read: Sequence[str] = ()) -> Table:
    """The rows to evaluate; nothing else is read. Raises: UserError for rows that cannot be used."""
    card, section = CARDS[recipe.task], recipe.data
    sources = _sources(recipe, split, data, read)
    if sources is None:
        table: Any = open_tables(recipe, card)[split]
    else:
        name = OTHER if data else split
        table = open_split(
            name,
            sources,
            card,
            columns=section.columns,
            on_bad_row=section.on_bad_row,
            values=card.rows.required_values(recipe.options),
        )
    if table.name == "train":  # or its images would be augmented
        table.name = "train (evaluated)"
    return table


def _sources(recipe: Recipe, split: str, data: Sequence[str], read: Sequence[str]) -> tuple[SourceSection, ...] | None:
    """The sources of the rows to evaluate; None where they are part of the training data.

    Raises: UserError if the recipe has no such split.
    """
    section = recipe.data
    if data:
        return tuple(asked_sources([_absolute(source) for source in data], read))
    splits: dict[str, Any] = {
        "train": True,
        "validation": section.validation or section.validation_fraction,
        "test": section.test,
    }
    if not splits.get(split):
        names = ", ".join(name for name, given in splits.items() if given)
        raise UserError(f"the run has no split {split}", remedy=f"It has {names}; or give other data: --data FILE.")
    if split == "train":
        return None if section.validation_fraction or section.limit else section.train
    return section.validation or None if split == "validation" else section.test


def _absolute(source: str) -> str:
    """A path of the current folder in full, with links as they are; hub ids and built-in sets as they are."""
    path = user_path(source)
    return os.path.abspath(path) if path.exists() else source  # noqa: PTH100 - the extension of a link counts


def evaluated_split(split: str, data: Sequence[str], read: Sequence[str] = ()) -> str:
    """The split that is asked for; validation, if none is. Raises: UserError if other data is given as well, or --read
    without other data.
    """
    if read and not data:
        raise UserError(
            f"{read[0]} says how other data is read, but none is given",
            where="--read",
            remedy="Give the data: --data FILE. A split is read as the recipe says, or --set data.test='{source: FILE, ...}'.",
        )
    if split and data:
        raise UserError(
            f"--split {split} and --data {data[0]} both say what is evaluated",
            where="--split",
            remedy="Give one of them: --data is evaluated in place of a split.",
        )
    return split or "validation"


def evaluation_name(checkpoint: str, split: str, data: list[str]) -> str:
    """best-validation, step-00000120-reviews: what is evaluated, as the name of a folder."""
    subject = Path(data[0]).name.partition(".")[0] if data else split
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{checkpoint}-{subject}").strip("-.") or "evaluation"


def evaluation_logs(run: Run, name: str) -> Path:
    """Where the ranks of an evaluation write what they print, and how they failed: not among the logs of a training that
    may go on meanwhile. Raises: UserError for a name that is not that of a folder.
    """
    _check_name(name)
    return run.logs / f"evaluate-{name}"


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(
            f"{name!r} cannot name an evaluation",
            where="--name",
            remedy="Use letters, digits, dots, dashes, underscores.",
        )


def reserve_folder(run: Run, name: str) -> Path:
    """A new, empty folder evaluations/<name> of the run; with a number behind the name if there is one already.

    Raises: UserError for a name that is not that of a folder.
    """
    _check_name(name)
    run.evaluations.mkdir(exist_ok=True)
    for number in range(1, 10_000):
        folder = run.evaluations / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise UserError(
        f"there are 9,999 evaluations called {name}", where=str(run.evaluations), remedy="Give another --name."
    )
