"""Lengths of token sequences: what a model takes, how rows are padded, what people are told of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from finetune.data.table import Examples

if TYPE_CHECKING:
    import torch

MULTIPLE = 8  # lengths are padded to a multiple of it: matrix units work in tiles
_NO_LIMIT = 1_000_000  # tokenizers without a limit of their own state 1e30


def usable_length(asked: int, tokenizer: Any, config: Any) -> int:
    """The smallest of what the recipe asks, what the tokenizer states and how many positions the model has.

    Padding to a multiple of 8 must not lead beyond the last position: 512 of RoBERTa's 514, 48 of 50.
    """
    limits = [asked]
    if getattr(tokenizer, "model_max_length", _NO_LIMIT) < _NO_LIMIT:
        limits.append(int(tokenizer.model_max_length))
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions >= MULTIPLE:
        limits.append(positions // MULTIPLE * MULTIPLE)
    return min(limits)


def pad_rows(examples: Sequence[dict[str, Any]], pad_token_id: int) -> tuple[dict[str, torch.Tensor], int]:
    """Rows padded on the right to the longest, rounded up to a multiple of 8; the second value counts padding positions.

    [{"input_ids": [5, 6, 7]}], 0 -> {"input_ids": [[5, 6, 7, 0, 0, 0, 0, 0]], "attention_mask": [[1, 1, 1, 0, ...]]}, 5
    """
    import numpy as np
    import torch

    lengths = [len(example["input_ids"]) for example in examples]
    width = -(-max(lengths) // MULTIPLE) * MULTIPLE
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


def describe_lengths(facts: dict[str, Any], name: str, examples: Examples, limit: int, dropped: int) -> None:
    """Adds to `facts` what the lengths of a split are: "5,120 examples, 31 tokens on average, 95% within 58, ..."."""
    import numpy as np

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
    at_limit = int((costs >= limit).sum())
    if at_limit:
        parts.append(f"{at_limit:,} cut to (or exactly) {limit}")
    if dropped:
        parts.append(f"{dropped:,} longer than {limit} left out")
    if getattr(examples, "skipped_count", 0):
        parts.append(f"{examples.skipped_count:,} bad rows skipped")  # type: ignore[attr-defined]
    facts[name] = ", ".join(parts)
