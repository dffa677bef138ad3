"""Losses as sums over units, in float32, with memory that does not grow with the vocabulary.

Shapes: N rows (tokens or examples), C classes or vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

IGNORE = -100
_CHUNK_ELEMENTS = 1 << 25  # float32 logits held at once: 128 MiB


def cross_entropy_sum(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy summed over the rows of `logits` [N, C] whose label [N] is not -100: float32 scalar.

    Large inputs go through in chunks, each recomputed in the backward pass, so that no float32 copy of all logits lives.
    Zero rows give a zero that is still connected to the graph. Nothing here asks a GPU for a value.
    """
    rows = max(1, _CHUNK_ELEMENTS // max(1, logits.shape[-1]))
    if logits.shape[0] <= rows:
        return _chunk_sum(logits, labels, label_smoothing)
    total = torch.zeros((), dtype=torch.float32, device=logits.device)
    for part, part_labels in zip(logits.split(rows), labels.split(rows), strict=True):
        if logits.requires_grad:
            total = total + checkpoint(_chunk_sum, part, part_labels, label_smoothing, use_reentrant=False)
        else:
            total = total + _chunk_sum(part, part_labels, label_smoothing)
    return total


def _chunk_sum(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    if logits.shape[0] == 0:
        return logits.float().sum()
    return functional.cross_entropy(
        logits.float(), labels, reduction="sum", ignore_index=IGNORE, label_smoothing=label_smoothing
    )


def cross_entropy_rows(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each row of `logits` [N, C] under its label [N], with gradient: float32 [N]."""
    rows = max(1, _CHUNK_ELEMENTS // max(1, logits.shape[-1]))
    if logits.shape[0] <= rows:
        return functional.cross_entropy(logits.float(), labels, reduction="none")
    parts = [
        checkpoint(_rows, part, part_labels, use_reentrant=False) if logits.requires_grad else _rows(part, part_labels)
        for part, part_labels in zip(logits.split(rows), labels.split(rows), strict=True)
    ]
    return torch.cat(parts)


def _rows(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits.float(), labels, reduction="none")


def cross_entropy_each(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each row: float32 [N], 0 where the label is -100. For reports, not for training."""
    rows = max(1, _CHUNK_ELEMENTS // max(1, logits.shape[-1]))
    parts = [
        functional.cross_entropy(part.float(), part_labels, reduction="none", ignore_index=IGNORE)
        for part, part_labels in zip(logits.split(rows), labels.split(rows), strict=True)
    ]
    return torch.cat(parts) if parts else logits.new_zeros(0, dtype=torch.float32)


def binary_cross_entropy_each(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Multi-label loss of each example: mean over its C classes of the binary cross-entropy: float32 [N].

    logits and targets are [N, C], targets 0.0 or 1.0. Dividing by C, a constant, keeps the size of the loss, and with it
    the learning rate, independent of the number of classes; a sum over examples stays exact under any split.
    Smoothing moves each target towards 1/2: y (1 - s) + s / 2.
    """
    goals = targets.float() * (1.0 - label_smoothing) + 0.5 * label_smoothing
    return functional.binary_cross_entropy_with_logits(logits.float(), goals, reduction="none").mean(dim=-1)
