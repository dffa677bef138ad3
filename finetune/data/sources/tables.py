"""Opens the splits of a recipe as tables: joins the sources of each split, and holds out validation rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from finetune.data.bad_rows import BadRows
from finetune.data.columns import ColumnSpec, Required
from finetune.data.prepare.hold_out import hold_out
from finetune.data.prepare.label_survey import row_classes
from finetune.data.sources.joined_table import JoinedTable, PartRows
from finetune.data.sources.open_source import Notify, open_source
from finetune.data.sources.split_notes import split_notes
from finetune.data.values import OddValues
from finetune.errors import UserError
from finetune.recipe.card import TaskCard
from finetune.recipe.data import SourceSection
from finetune.recipe.recipe import Recipe
from finetune.units import format_number


def _silent(text: str) -> None:
    """Discard a message."""


def open_tables(recipe: Recipe, card: TaskCard, *, notify: Notify = _silent) -> dict[str, JoinedTable]:
    """Open the splits of a recipe: {"train": ..., "validation": ..., "test": ...}, the last two if the recipe has them.

    data.limit keeps the first rows of train, before data.validation_fraction holds out some of them. Any process may
    call it; converted files are published in the cache atomically.

    notify: is called with progress lines and with a report of skipped rows.
    Raises: UserError for data that is missing, unreadable or empty, and for bad rows if data.on_bad_row is "error".
    """
    data = recipe.data
    tables: dict[str, JoinedTable] = {}
    for name, sources in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        if sources:
            limit = data.limit if name == "train" else None
            tables[name] = open_split(
                name,
                sources,
                card,
                columns=data.columns,
                on_bad_row=data.on_bad_row,
                limit=limit,
                values=card.rows.required_values(recipe.options),
                notify=notify,
            )
    for note in split_notes(data):
        notify(note)
    if data.validation_fraction and not data.validation:
        tables["train"], tables["validation"] = _held_out(tables["train"], recipe, card, notify)
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
    values: Required | None = None,
    notify: Notify = _silent,
) -> JoinedTable:
    """Open one split: its sources, joined in order.

    columns: role -> column, for all sources; those of a source take precedence.
    required: roles that every source must have, each entry a tuple of alternatives; None: those of the card.
    values: those of them in which every row must have a value; None: all.
    Raises: UserError as open_tables does.
    """
    parts: list[PartRows] = []
    bad, odd = BadRows(on_bad_row), OddValues()
    for source in sources:
        present = card.rows.required if required is None else required
        spec = ColumnSpec(card, {**columns, **source.columns}, present if values is None else values, present)
        source_limit = min((rows for rows in (source.limit, limit) if rows is not None), default=None)
        for rows, mapping in open_source(name, source, spec, source_limit, notify):
            bad.extend(rows.bad)
            odd.extend(rows.odd)
            parts.append((rows, mapping))
    for note in odd.notes():
        notify(f"{name}: {note}")
    bad.enforce_policy(name)
    table = _limited(name, parts, bad, limit)
    if not len(table):
        where = ", ".join(source.source for source in sources)
        raise UserError(f"{name}: no usable rows", where=where, remedy=bad.summary() or "Give data that has rows.")
    if bad.count:
        notify(f"{name}: {format_number(bad.count, 'row')} skipped, {len(table):,} kept\n{bad.summary()}")
    return table


def _limited(name: str, parts: list[PartRows], bad: BadRows, limit: int | None) -> JoinedTable:
    table = JoinedTable(name, parts, bad)
    if limit is None or len(table) <= limit:
        return table
    import numpy as np

    return table.choose(name, np.arange(limit), f"limit {limit}")


def _held_out(whole: JoinedTable, recipe: Recipe, card: TaskCard, notify: Notify) -> tuple[JoinedTable, JoinedTable]:
    fraction, seed = recipe.data.validation_fraction, recipe.seed
    split = hold_out(
        whole,
        whole.fingerprint,
        fraction=fraction,
        seed=seed,
        roles=tuple(role for role in card.rows.columns if role not in card.rows.unhashed),
        classes=row_classes(whole, card, recipe.options),
    )
    note = f"{whole.fingerprint} fraction {fraction} seed {seed}"
    if split.moved:
        note += f" moved {split.moved}"
        notify(split.describe())
    train, held = (
        whole.choose("train", split.train, f"train {note}"),
        whole.choose("validation", split.held, f"validation {note}"),
    )
    train.whole = whole
    return train, held
