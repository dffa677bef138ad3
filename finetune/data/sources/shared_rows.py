"""Rows of validation and test that are in the training data as well: scores on them are not those on new data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from finetune.data.prepare.hold_out import row_hashes
from finetune.data.sources.joined_table import JoinedTable
from finetune.recipe.card import TaskCard
from finetune.units import format_number


@dataclass(frozen=True)
class SharedRows:
    """split: whose rows are in train as well. count: "2 of 4 rows" of it. line: for the user, with the first place."""

    split: str
    count: str
    line: str


def shared_rows(tables: Mapping[str, JoinedTable], card: TaskCard) -> Iterator[SharedRows]:
    """Each split that shares rows with train, whatever their labels.

    Rows are hashed by the workers of the preparation, once: the hashes are cached. Rows that were held out of train are not
    looked at: copies of a row are held out together.
    """
    train = tables["train"]
    held_out = {"train"} if train.whole is None else {"train", "validation"}
    for name in [name for name in tables if name not in held_out]:
        table, known = tables[name], row_hashes(train, train.fingerprint, card.rows.contents)
        hashes = row_hashes(table, table.fingerprint, card.rows.contents)
        shared = np.flatnonzero(np.isin(hashes, known))
        if not len(shared):
            continue
        first = int(shared[0])
        places = table.place(first), train.place(int(np.flatnonzero(known == hashes[first])[0]))
        count = f"{len(shared):,} of {format_number(len(table), 'row')}"
        line = (
            f"{name}: {count} are in train as well, whatever their labels, so scores are not those on new data. The first is "
            f"{places[0]}, in train {places[1]}; finetune inspect lists them"
        )
        yield SharedRows(name, count, line)
