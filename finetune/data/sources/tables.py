"""From `data:` of a recipe to its splits as tables: sources joined, rows under their roles, validation held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from finetune.data.bad_rows import BadRows
from finetune.data.columns import Required, Wanted
from finetune.data.prepare.hold_out import hold_out
from finetune.data.sources.joined_table import JoinedTable, PartRows
from finetune.data.sources.source import Notify, open_source
from finetune.data.table import Table
from finetune.errors import UserError
from finetune.recipe.card import TaskCard
from finetune.recipe.data import SourceSection
from finetune.recipe.recipe import Recipe


def _silent(text: str) -> None:
    """Tells nobody."""


def open_tables(recipe: Recipe, card: TaskCard, *, notify: Notify = _silent) -> dict[str, Table]:
    """{"train": ..., "validation": ..., "test": ...}, the latter two where the recipe gives them.

    data.limit takes the first rows of train, before validation_fraction holds some of them out. Any rank may call it:
    what is converted is published in the cache by rename. tell: takes lines of progress and what was skipped.
    Raises: UserError for data that is missing, unreadable or empty, and for bad rows where data.on_bad_row is error.
    """
    data = recipe.data
    tables: dict[str, Table] = {}
    for name, sources in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        if sources:
            limit = data.limit if name == "train" else None
            tables[name] = open_split(
                name, sources, card, columns=data.columns, on_bad_row=data.on_bad_row, limit=limit, notify=notify
            )
    if data.validation_fraction and not data.validation:
        whole = tables["train"]
        assert isinstance(whole, JoinedTable)
        tables["train"], tables["validation"] = _held_out(whole, data.validation_fraction, recipe.seed, card)
    return tables


def open_split(
    name: str,
    sources: Sequence[SourceSection],
    card: TaskCard,
    *,
    columns: Mapping[str, str],
    on_bad_row: str,
    limit: int | None = None,
    required: Required | None = None,
    notify: Notify = _silent,
) -> JoinedTable:
    """One split from its sources, joined in order. required: roles that rows need; default: the card's.

    Raises: UserError, as open_tables does.
    """
    parts: list[PartRows] = []
    bad = BadRows(on_bad_row)
    for source in sources:
        wanted = Wanted(card, {**columns, **source.columns}, card.required if required is None else required)
        least = min((each for each in (source.limit, limit) if each is not None), default=None)
        for rows, mapping in open_source(name, source, wanted, least, notify):
            bad.extend(rows.bad)
            parts.append((rows, mapping))
    bad.settle(name)
    table = _limited(name, sources, parts, bad, limit)
    if not len(table):
        where = ", ".join(source.source for source in sources)
        raise UserError(f"{name}: no usable row", where=where, remedy=bad.told() or "Give data that has rows.")
    if bad.count:
        notify(f"{name}: {bad.count:,} rows skipped, {len(table):,} kept\n{bad.told()}")
    return table


def _limited(
    name: str, sources: Sequence[SourceSection], parts: list[PartRows], bad: BadRows, limit: int | None
) -> JoinedTable:
    table = JoinedTable(name, parts, bad)
    if limit is None or len(table) <= limit:
        return table
    import numpy as np

    return table.choose(name, np.arange(limit), f"limit {limit}")


def _held_out(whole: JoinedTable, fraction: float, seed: int, card: TaskCard) -> tuple[Table, Table]:
    train, held = hold_out(
        whole, len(whole), whole.fingerprint, fraction=fraction, seed=seed, roles=tuple(card.columns)
    )
    note = f"{whole.fingerprint} fraction {fraction} seed {seed}"
    return whole.choose("train", train, f"train {note}"), whole.choose("validation", held, f"validation {note}")
