"""Columns of the input that stand beside the answers: `--keep id`, `--keep label=expected`, `--keep all`."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from finetune.data.columns import nearest_name
from finetune.data.sources.raw_rows import RawRows
from finetune.errors import UserError

ALL = "all"
FLAG = "--keep"
BESIDE = "input_"  # before the name of a column that has the name of a field of the answer


def choose_kept(
    asked: Sequence[str], parts: Sequence[RawRows], reserved: Collection[str]
) -> tuple[dict[str, str], list[str]]:
    """({name beside the answer: column}, notes). asked: COLUMN, COLUMN=NAME or all. reserved: names of the answer's fields.

    Raises: UserError for a column that no source has, that holds bytes, or that has the name of a field.
    """
    columns = list(dict.fromkeys(column for part in parts for column in part.columns))
    nested = {column for part in parts for column in part.nested}
    bytes_in = {column for part in parts for column in part.unkeepable}
    if list(asked) == [ALL] and ALL not in columns:
        return _all(columns, bytes_in, reserved)
    kept: dict[str, str] = {}
    for text in asked:
        column, _, name = (text, "", text) if text in {*columns, *nested} else text.rpartition("=")
        column, name = (column, name) if column else (text, text)
        if column not in {*columns, *nested}:
            near = nearest_name(column, columns)
            raise UserError(
                f"the data has no column {column!r}" + (f" (did you mean {near}?)" if near else ""),
                where=FLAG,
                remedy=f"It has {', '.join(columns[:40])}; {FLAG} {ALL} keeps all of them.",
            )
        if column in bytes_in:
            raise UserError(f"the column {column} holds bytes, such as images", where=FLAG, remedy="Keep another one.")
        if name in reserved or name in kept:
            what = "answers have a field of this name" if name in reserved else "two columns would have this name"
            raise UserError(
                f"the column {column} cannot be kept as {name}: {what}",
                where=FLAG,
                remedy=f"Give it another name: {FLAG} {column}={BESIDE}{name}",
            )
        kept[name] = column
    return kept, []


def _all(
    columns: Sequence[str], bytes_in: Collection[str], reserved: Collection[str]
) -> tuple[dict[str, str], list[str]]:
    kept: dict[str, str] = {}
    notes = []
    for column in columns:
        if column in bytes_in:
            notes.append(f"{FLAG} {ALL}: the column {column} holds bytes and is not kept")
            continue
        name = column
        while name in reserved or name in kept or (name != column and name in columns):
            name = BESIDE + name
        if name != column:
            notes.append(f"{FLAG} {ALL}: the column {column} is kept as {name}, as answers have a field {column}")
        kept[name] = column
    return kept, notes
