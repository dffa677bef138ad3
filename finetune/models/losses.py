"""Losses as sums over tokens or examples, in float32, with bounded memory for large vocabularies.

Shapes: N rows (tokens or examples), C classes or vocabulary size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

IGNORE = -100
_CHUNK_ELEMENTS = 1 << 25  # float32 logits in memory at once: 128 MiB


def cross_entropy_sum(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy summed over all rows whose label is not -100: float32 scalar.

    Large inputs are processed in chunks that are recomputed in the backward pass, so that no float32 copy of all logits
    is kept. With zero rows, the result is 0 and still connected to the graph. Does not synchronize with a GPU.

    logits: [N, C]. labels: int64 [N].
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
    """Cross-entropy of each row, with gradient: float32 [N]. logits: [N, C]. labels: int64 [N], without -100."""
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
    """Cross-entropy of each row: float32 [N], 0 where the label is -100. For evaluation, not for training.

    logits: [N, C]. labels: int64 [N].
    """
    rows = max(1, _CHUNK_ELEMENTS // max(1, logits.shape[-1]))
    parts = [
        functional.cross_entropy(part.float(), part_labels, reduction="none", ignore_index=IGNORE)
        for part, part_labels in zip(logits.split(rows), labels.split(rows), strict=True)
    ]
    return torch.cat(parts) if parts else logits.new_zeros(0, dtype=torch.float32)


def binary_cross_entropy_each(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Multi-label loss of each example, the mean over classes of the binary cross-entropy: float32 [N].

    Because of the mean, the scale of the loss and a suitable learning rate do not depend on the number of classes.
    Label smoothing s moves each target y towards 1/2: y (1 - s) + s / 2.

    logits: [N, C]. targets: [N, C], 0.0 or 1.0.
    """
    smoothed = targets.float() * (1.0 - label_smoothing) + 0.5 * label_smoothing
    return functional.binary_cross_entropy_with_logits(logits.float(), smoothed, reduction="none").mean(dim=-1)
