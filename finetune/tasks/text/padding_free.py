"""Examples concatenated into one row: no padding, and the borders that attention must not cross.

Shapes: S segments (examples), T tokens of all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def concatenate_rows(examples: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], list[int]]:
    """[{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]}] -> input_ids [[5, 6, 7, 8, 9]], position_ids [[0, 1, 2, 0, 1]],
    cu_seq_lens_q and _k [0, 3, 5] (int32), max_length_q and _k 3; the second value holds the borders [0, 3, 5].

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
    return inputs, borders.tolist()


def split_rows(inputs: dict[str, Any]) -> list[torch.Tensor]:
    """The token ids of each segment, on the CPU."""
    borders = inputs["cu_seq_lens_q"].tolist()
    tokens = inputs["input_ids"][0].cpu()
    return [tokens[start:end] for start, end in itertools.pairwise(borders)]
