"""Lengths of token sequences: what a model takes, how rows are padded, and their description for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from finetune.data.table import Examples
from finetune.tasks.facts import Facts
from finetune.tasks.text.limits import OPTION, Limit
from finetune.units import format_number

MULTIPLE = 8  # long rows are padded to a multiple of it, which attention kernels prefer
LONG = 64  # shorter rows are not: at 20 tokens it would add a sixth to all computation
_NO_LIMIT = 1_000_000  # tokenizers without a limit of their own state 1e30


def usable_length(requested: int, tokenizer: Any, config: Any, option: str = OPTION) -> Limit:
    """The smallest of the requested length, the tokenizer's limit and the number of positions of the model.

    option: the name of what requests it.
    Padding to a multiple of 8 must not lead beyond the last position: 512 of RoBERTa's 514, 48 of 50.
    """
    limits = [Limit(requested, option)]
    if getattr(tokenizer, "model_max_length", _NO_LIMIT) < _NO_LIMIT:
        limits.append(Limit(tokenizer.model_max_length, "the tokenizer's model_max_length"))
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions >= MULTIPLE:
        limits.append(Limit(positions // MULTIPLE * MULTIPLE, "the model's max_position_embeddings"))
    return min(limits)


def padded_width(longest: int) -> int:
    """Tokens of a padded row: the longest, from 64 on rounded up to a multiple of 8. 20 -> 20, 65 -> 72."""
    return longest if longest < LONG else -(-longest // MULTIPLE) * MULTIPLE


def pad_rows(examples: Sequence[dict[str, Any]], pad_token_id: int) -> tuple[dict[str, torch.Tensor], int]:
    """Rows padded on the right to the longest (see `padded_width`); the second value counts padding positions.

    [{"input_ids": [5, 6, 7]}, {"input_ids": [8]}], 0 -> {"input_ids": [[5, 6, 7], [8, 0, 0]], "attention_mask": [[1, 1, 1],
    [1, 0, 0]]}, 2
    """
    lengths = [len(example["input_ids"]) for example in examples]
    width = padded_width(max(lengths))
    inputs: dict[str, torch.Tensor] = {}
    for key, fill in (("input_ids", pad_token_id), ("token_type_ids", 0)):
        if key in examples[0]:
            rows = np.full((len(examples), width), fill, np.int64)
            for row, example in zip(rows, examples, strict=True):
                row[: len(example[key])] = example[key]
            inputs[key] = torch.from_numpy(rows)
    mask = np.arange(width)[None, :] < np.asarray(lengths)[:, None]
    inputs["attention_mask"] = torch.from_numpy(mask.astype(np.int64))
    return inputs, width * len(examples) - sum(lengths)


def describe_lengths(
    facts: Facts, name: str, examples: Examples, limit: str, dropped: int, cuts: Sequence[str]
) -> None:
    """Adds the lengths of a split to the facts: "5,120 examples, 31 tokens on average, 95% within 58, ...".

    limit: what an example may have, such as "256 tokens". dropped: examples that had more. cuts: what was cut, as notices of
    the split say. What is in no notice becomes a note.
    """
    costs = np.asarray(examples.costs)
    if not len(costs):
        facts[name] = "no examples"
        return
    parts = [
        f"{len(costs):,} examples",
        f"{costs.mean():.0f} tokens on average",
        f"95% within {np.percentile(costs, 95):.0f}",
        f"longest {costs.max()}",
    ]
    changed = []
    if split := getattr(examples, "split_count", 0):
        changed.append(f"{split:,} longer than {limit} continue as examples of their own")
    if dropped:
        changed.append(f"{dropped:,} longer than {limit} left out")
    if changed:
        facts.notes.append(f"{name}: {', '.join(changed)}")
    skipped = getattr(examples, "skipped_count", 0)
    bad = [f"{format_number(skipped, 'bad row')} skipped"] if skipped else []
    facts[name] = ", ".join([*parts, *cuts, *changed, *bad])
