"""Pairs of sequences that begin alike (two replies to one prompt), with what they share computed once.

Of the second sequence, only what differs from the first on is in the row; `models/shared_tokens.py` spreads the row out where
attention needs whole sequences. What the labels, borders and lengths of a batch say stays that of whole sequences.

Shapes: T tokens of the row, P tokens of all whole sequences.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from finetune.models.config import load_config
from finetune.models.segmented import can_share_tokens
from finetune.models.shared_tokens import AGAIN, PLACE, SOURCE
from finetune.planning.plan import Plan


def shares_prefixes(plan: Plan) -> bool:
    """Whether the model of `plan` takes pairs that share their beginning: concatenated ones of a causal model whose attention
    is ours.
    """
    model = plan.recipe.model
    return plan.training.packing != "none" and can_share_tokens(load_config(model), model.attention)


def share_prefixes(inputs: dict[str, Any]) -> dict[str, Any]:
    """`concatenate_rows` of sequences a1, b1, a2, b2, where a1 and a2 are a pair -> the same without what a2 and b2 begin with
    alike: input_ids and position_ids [1, T]; "shared_source" int64 [P], the token of each place of the whole sequences;
    "shared_place" int64 [T], the first place of each token; "shared_again" int64 [2, P - T], tokens and their second places.

    Unchanged if no pair shares a token.
    """
    borders = inputs["cu_seq_lens_q"].numpy().astype(np.int64)
    ids = inputs["input_ids"][0].numpy()
    pairs = (len(borders) - 1) // 2
    first = np.arange(len(ids))  # the first place of each place's token
    for one, other in zip(range(pairs), range(pairs, 2 * pairs), strict=True):
        start, again = borders[one], borders[other]
        count = _common(ids[start : borders[one + 1]], ids[again : borders[other + 1]])
        first[again : again + count] = start + np.arange(count)
    is_own = first == np.arange(len(ids))
    if is_own.all():
        return inputs
    place, second = np.flatnonzero(is_own), np.flatnonzero(~is_own)
    source = (np.cumsum(is_own) - 1)[first]
    tables = {SOURCE: source, PLACE: place, AGAIN: np.stack((source[second], second))}
    return {
        **inputs,
        "input_ids": inputs["input_ids"][:, place],
        "position_ids": inputs["position_ids"][:, place],
        "cu_seq_lens_q": inputs["cu_seq_lens_q"].clone(),  # attention keeps tables with this tensor (segment_blocks.py)
        **{name: torch.from_numpy(table) for name, table in tables.items()},
    }


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens both begin with."""
    shorter = min(len(one), len(other))
    different = np.flatnonzero(one[:shorter] != other[:shorter])
    return int(different[0]) if len(different) else shorter


def whole_sequences(values: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
    """Values of the row's tokens [1, T, ...] -> those of the whole sequences [1, P, ...]; other batches' as they are."""
    return values if inputs.get(SOURCE) is None else values[:, inputs[SOURCE].to(values.device)]
