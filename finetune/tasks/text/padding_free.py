"""Batches of texts: padded rows, or all sequences in one row without padding, with the borders that attention must not cross.

Shapes: S sequences, T tokens of all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from finetune.planning.plan import Plan
from finetune.recipe.card import TaskCard
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.facts import Facts
from finetune.tasks.text.lengths import pad_rows
from finetune.tasks.text.limits import Limit
from finetune.tasks.text.shared_prefixes import whole_sequences


def settle_packing(card: TaskCard, plan: Plan, limit: Limit, facts: Facts) -> dict[str, Any]:
    """{"max_length", "limited_by", "packing", "capacity"} of a task's settings; a fact where the model cannot
    do what its task does.

    limit: tokens that a sequence may have.
    """
    packing, capacity = plan.training.packing, plan.training.capacity
    asked = plan.recipe.data
    if packing not in (asked.packing, card.batches.packing):
        facts["packing"] = f"{packing}: padded, as the model cannot take concatenated examples"
    if packing == "none":
        return {**limit.settings, "packing": packing, "capacity": capacity}
    if capacity != asked.capacity and not card.batches.sequences:  # derived: the tokenizer's limit counts as well
        capacity = min(capacity, limit)
    sequences = max(1, card.batches.sequences)
    room = Limit(capacity // sequences, "data.capacity" if sequences == 1 else f"data.capacity / {sequences}")
    return {
        **min(limit, room).settings,
        "packing": packing,
        "capacity": capacity,
    }


def is_concatenated(artifacts: TaskArtifacts) -> bool:
    """Whether batches have no padding. Artifacts of older versions do not say."""
    return bool(artifacts.settings.get("packing", "none") != "none")


def collate_texts(artifacts: TaskArtifacts, rows: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], int]:
    """Inputs of the model for `rows`, padded or concatenated as the artifacts say; the second value counts padding."""
    if is_concatenated(artifacts):
        return concatenate_rows(rows)[0], 0
    return pad_rows(rows, artifacts.processor.pad_token_id)


def concatenate_rows(examples: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], list[int]]:
    """[{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]}] -> input_ids [[5, 6, 7, 8, 9]], position_ids [[0, 1, 2, 0, 1]],
    cu_seq_lens_q and _k [0, 3, 5] (int32), max_length_q and _k 3; the second value holds the borders [0, 3, 5].
    token_type_ids [1, T] where the examples have them.

    These are the names under which transformers hands them to attention functions.
    """
    lengths = np.array([len(example["input_ids"]) for example in examples])
    borders = np.concatenate(([0], np.cumsum(lengths)))
    tokens = np.concatenate([example["input_ids"] for example in examples]).astype(np.int64)
    positions = np.arange(borders[-1]) - np.repeat(borders[:-1], lengths)
    limits = torch.from_numpy(borders.astype(np.int32))
    longest = int(lengths.max())
    inputs = {
        "input_ids": torch.from_numpy(tokens)[None],
        "position_ids": torch.from_numpy(positions)[None],
        "cu_seq_lens_q": limits,
        "cu_seq_lens_k": limits,
        "max_length_q": longest,
        "max_length_k": longest,
    }
    if "token_type_ids" in examples[0]:
        kinds = np.concatenate([example["token_type_ids"] for example in examples]).astype(np.int64)
        inputs["token_type_ids"] = torch.from_numpy(kinds)[None]
    return inputs, borders.tolist()


def split_rows(inputs: dict[str, Any]) -> list[torch.Tensor]:
    """The token ids of each sequence, on the CPU, whether padded or concatenated."""
    return split_values(whole_sequences(inputs["input_ids"].cpu(), inputs), inputs)


def split_values(values: Any, inputs: dict[str, Any]) -> list[Any]:
    """What belongs to the tokens of each sequence. values: [B, L, ...] of padded rows, [1, T, ...] of concatenated ones (whole
    ones, if they share tokens); tensors, or arrays, which the result are views of.
    """
    if "cu_seq_lens_q" in inputs:
        return [values[0, start:end] for start, end in itertools.pairwise(inputs["cu_seq_lens_q"].tolist())]
    lengths = inputs["attention_mask"].sum(dim=1).tolist()
    return [row[:length] for row, length in zip(values, lengths, strict=True)]
