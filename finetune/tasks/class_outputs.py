"""What a classifier's logits become: a loss, answers and scores. Shapes: B examples, C classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional

from finetune.models.losses import binary_cross_entropy_each, cross_entropy_each, cross_entropy_sum
from finetune.tasks.batch import Answer, Batch, Score


def label_tensor(labels: Sequence[Any], num_labels: int, *, several: bool) -> torch.Tensor:
    """[2, 0] -> int64 [B]; several: [[0, 2], []] -> float32 [B, C] of 0 and 1."""
    if not several:
        return torch.tensor([int(label) for label in labels], dtype=torch.long)
    hot = torch.zeros(len(labels), num_labels)
    for row, indices in enumerate(labels):
        hot[row, [int(index) for index in indices]] = 1.0
    return hot


def classification_loss_sum(logits: torch.Tensor, labels: torch.Tensor, *, label_smoothing: float) -> torch.Tensor:
    """Loss summed over the B examples, float32: cross-entropy for labels [B], mean binary one for labels [B, C]."""
    if labels.dim() == 2:
        return binary_cross_entropy_each(logits, labels, label_smoothing=label_smoothing).sum()
    return cross_entropy_sum(logits, labels, label_smoothing=label_smoothing)


def weighted_loss_sum(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    partners: torch.Tensor | None,
    shares: torch.Tensor | None,
    class_weights: torch.Tensor | None,
    label_smoothing: float,
) -> torch.Tensor:
    """Cross-entropy summed over B examples, float32, each times the weight of its class; a mixed example counts its own
    label and its partner's by their shares. labels, partners: [B]; shares: [B], of the example's own label; class_weights:
    [C].
    """
    logits = logits.float()

    def each(classes: torch.Tensor) -> torch.Tensor:
        losses = functional.cross_entropy(logits, classes, reduction="none", label_smoothing=label_smoothing)
        return losses if class_weights is None else losses * class_weights[classes]

    if partners is None or shares is None:
        return each(labels).sum()
    return (shares * each(labels) + (1.0 - shares) * each(partners)).sum()


def class_answers(
    logits: torch.Tensor, batch: Batch, names: Sequence[str], shown: Sequence[Mapping[str, Any]], *, several: bool
) -> list[Answer]:
    """One answer per example: its class (or 0/1 for each class) and its scores (softmax; sigmoid for several labels)."""
    logits = logits.detach().float()
    if several:
        scores, chosen = torch.sigmoid(logits), (logits > 0).int()
    else:
        scores, chosen = torch.softmax(logits, dim=-1), logits.argmax(dim=-1)
    rows = zip(batch.ids, chosen.tolist(), scores.tolist(), shown, strict=True)
    return [
        Answer(id, {"prediction": prediction, "scores": score}, {**extra, "predicted": name_of(prediction, names)})
        for id, prediction, score, extra in rows
    ]


def class_scores(logits: torch.Tensor, batch: Batch, names: Sequence[str]) -> list[Score]:
    """One score per example: its label, and its loss without label smoothing and class weights."""
    logits, labels = logits.detach().float(), batch.targets["labels"]
    if labels.dim() == 2:
        losses, references = binary_cross_entropy_each(logits, labels), labels.int()
    else:
        losses, references = cross_entropy_each(logits, labels), labels
    return [
        Score(id, loss, 1, {"reference": reference}, {"label": name_of(reference, names)})
        for id, loss, reference in zip(batch.ids, losses.tolist(), references.tolist(), strict=True)
    ]


def name_of(value: Any, names: Sequence[str]) -> str:
    """1 -> "positive"; [1, 0, 1] -> "anger, joy"; [0, 0, 0] -> "(none)"."""
    if isinstance(value, list):
        return ", ".join(name for name, on in zip(names, value, strict=True) if on) or "(none)"
    return names[value]
