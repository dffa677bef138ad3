"""Lengths of token sequences: what a model takes, how rows are padded, what people are told of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from finetune.data.table import Examples

if TYPE_CHECKING:
    import torch

    from finetune.tasks.task import Kit

MULTIPLE = 8  # long rows are padded to a multiple of it, which kernels for attention masks like
LONG = 64  # shorter rows are not: at 20 tokens a sixth of all computing would be for it
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


def padded_width(longest: int) -> int:
    """Tokens of a padded row: the longest, from 64 on rounded up to a multiple of 8. 20 -> 20, 65 -> 72."""
    return longest if longest < LONG else -(-longest // MULTIPLE) * MULTIPLE


def pad_rows(examples: Sequence[dict[str, Any]], pad_token_id: int) -> tuple[dict[str, torch.Tensor], int]:
    """Rows padded on the right to the longest (see `padded_width`); the second value counts padding positions.

    [{"input_ids": [5, 6, 7]}, {"input_ids": [8]}], 0 -> {"input_ids": [[5, 6, 7], [8, 0, 0]], "attention_mask": [[1, 1, 1],
    [1, 0, 0]]}, 2
    """
    import numpy as np
    import torch

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


def describe_lengths(kit: Kit, name: str, examples: Examples, limit: int, dropped: int) -> None:
    """Adds to the kit's facts what the lengths of a split are: "5,120 examples, 31 tokens on average, 95% within 58, ...".

    What became of examples that were too long is a note besides.
    """
    import numpy as np

    costs = np.asarray(examples.costs)
    if not len(costs):
        kit.facts[name] = "no examples"
        return
    parts = [
        f"{len(costs):,} examples",
        f"{costs.mean():.0f} tokens on average",
        f"95% within {np.percentile(costs, 95):.0f}",
        f"longest {costs.max()}",
    ]
    at_limit, split = int((costs >= limit).sum()), getattr(examples, "split_count", 0)
    changed = []
    if split:
        changed.append(f"{split:,} longer than {limit} tokens went on as examples of their own")
    elif at_limit:
        changed.append(f"{at_limit:,} cut to (or exactly) {limit} tokens")
    if dropped:
        changed.append(f"{dropped:,} longer than {limit} tokens left out")
    if changed:
        kit.notes.append(f"{name}: {', '.join(changed)}")
    skipped = getattr(examples, "skipped_count", 0)
    kit.facts[name] = ", ".join([*parts, *changed, *([f"{skipped:,} bad rows skipped"] if skipped else [])])
