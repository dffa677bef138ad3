"""Rows of language model tuning as examples, and batches of them: padded, or concatenated without padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from finetune.data.bad_rows import BadRow
from finetune.data.table import Row, Table
from finetune.models.losses import IGNORE
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.batch import Batch
from finetune.tasks.text.lengths import pad_rows
from finetune.tasks.text.limits import limit_of
from finetune.tasks.text.padding_free import concatenate_rows, split_rows
from finetune.tasks.text.reply_limits import expected_reply
from finetune.tasks.text.row_formats import RowEncoder, row_texts
from finetune.tasks.text.supervised_tokens import label_rows, supervised_targets

SHOWN_CHARACTERS = 400


def row_encoder(artifacts: TaskArtifacts) -> RowEncoder:
    """The encoder for the artifacts' tokenizer, template and limits."""
    options, settings = artifacts.options, artifacts.settings
    return RowEncoder(
        artifacts.processor,
        form=options.format,
        own_template=settings["own_template"],
        system=options.system,
        train_on=options.train_on,
        limit=limit_of(artifacts),
        on_long=options.on_long,
        tools=settings.get("tools", ()),
    )


def encode_rows(artifacts: TaskArtifacts, rows: Sequence[Row], *, with_targets: bool) -> list[dict[str, Any] | BadRow]:
    """{"input_ids", "spans", "reply_start", "notices"} per row, or a BadRow; without targets {"input_ids", "reply_start",
    "notices"}, which is the prompt alone. All rows are rendered first, then tokenized together.
    """
    return row_encoder(artifacts).encode(rows, with_targets=with_targets)


def training_texts(table: Table, form: str) -> Iterator[str]:
    """Texts for a tokenizer that is trained on them."""
    for row in table:
        yield from row_texts(row, form)


def collate_padded(examples: Sequence[dict[str, Any]], pad_token_id: int) -> Batch:
    """[{"input_ids": [5, 6, 7, 2], "spans": [2, 4]}] -> input_ids [[5, 6, 7, 2]], labels [[-100, -100, 7, 2]]."""
    inputs, padding = pad_rows(examples, pad_token_id)
    rows, width = inputs["input_ids"].shape
    labels = None
    if "spans" in examples[0]:
        labels = label_rows(examples, (rows, width), [example["spans"] for example in examples])
        labels[:, 0] = IGNORE  # no token stands before the first one to predict it from
    return _batch(examples, inputs, labels, padding=padding, positions=rows * width)


def collate_concatenated(examples: Sequence[dict[str, Any]]) -> Batch:
    """The same in one row without padding; attention stays inside the examples (see padding_free.py)."""
    inputs, borders = concatenate_rows(examples)
    labels = None
    if "spans" in examples[0]:
        labels = np.full((1, borders[-1]), IGNORE, np.int64)
        for border, example in zip(borders, examples, strict=False):
            for start, end in np.asarray(example["spans"]).reshape(-1, 2):
                labels[0, border + start : border + end] = example["input_ids"][start:end]
        labels[0, borders[:-1]] = IGNORE  # the token before it belongs to another example
    return _batch(examples, inputs, labels, padding=0, positions=borders[-1])


def _batch(
    examples: Sequence[dict[str, Any]], inputs: dict[str, Any], labels: Any, *, padding: int, positions: int
) -> Batch:
    targets: dict[str, Any] = {}
    meta: dict[str, Any] = {"reply_starts": [int(example["reply_start"]) for example in examples]}
    if labels is not None:
        targets.update(supervised_targets(labels))
        targets["units"] = len(targets["target_ids"])
        meta["references"] = [np.asarray(expected_reply(example)) for example in examples]
    return Batch(
        ids=tuple(int(example["id"]) for example in examples),
        inputs=inputs,
        targets=targets,
        meta=meta,
        padding=padding,
        positions=positions,
    )


def token_rows(batch: Batch) -> list[list[int]]:
    """The tokens of each example, whether padded or concatenated."""
    return [row.tolist() for row in split_rows(batch.inputs)]


def target_rows(batch: Batch) -> torch.Tensor:
    """The example that each supervised token belongs to: int64 [N]."""
    positions = batch.targets["target_positions"]
    if "cu_seq_lens_q" in batch.inputs:  # one row, and an example between two borders
        return torch.bucketize(positions + 1, batch.inputs["cu_seq_lens_q"].long(), right=True) - 1
    return positions // batch.targets["labels"].shape[1]


def shorten(text: str) -> str:
    """At most SHOWN_CHARACTERS of a text."""
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} ..."
