"""The supervised tokens of language models: found on the CPU, because asking a GPU for positions makes its host wait.

Shapes: B rows, L tokens, V vocabulary, N supervised tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from finetune.models.loss_head import install_loss_head
from finetune.models.losses import IGNORE
from finetune.tasks.batch import Batch
from finetune.tasks.facts import Facts


def supervised_targets(labels: np.ndarray) -> dict[str, torch.Tensor]:
    """labels [B, L], -100 where a token is not supervised -> targets of a batch, in the order of rows and tokens:

    "labels"; "target_positions" int64 [N], where in the flattened logits [B * L, V] a supervised token is predicted,
    which is one position before it; "target_ids" int64 [N], the tokens.
    """
    following = np.full_like(labels, IGNORE)
    following[:, :-1] = labels[:, 1:]
    positions = np.flatnonzero(following != IGNORE)
    arrays = {"labels": labels, "target_positions": positions, "target_ids": following.reshape(-1)[positions]}
    return {name: torch.from_numpy(values) for name, values in arrays.items()}


def note_loss_head(model: nn.Module, facts: Facts) -> None:
    """Install the loss head, and report a model whose loss needs the logits of all tokens, which takes memory."""
    if reason := install_loss_head(model):
        facts["loss head"] = f"logits of all tokens are computed: {reason}"


def forward_with_loss(model: Any, batch: Batch, *, per_token: bool = False) -> Any:
    """The model's loss over the batch's supervised tokens, computed by its loss head inside the forward pass.

    per_token: with gradients for the loss of each token (preference losses). A batch without targets gives the model's
    plain outputs. Needs `note_loss_head`.
    """
    if not batch.targets:
        return model(**batch.inputs, use_cache=False)
    return model(
        **batch.inputs,
        use_cache=False,
        target_positions=batch.targets["target_positions"],
        target_ids=batch.targets["target_ids"],
        per_token=per_token,
    )


def label_rows(examples: Sequence[dict[str, Any]], shape: tuple[int, int], spans: Sequence[Any]) -> np.ndarray:
    """Labels int64 [B, L]: the tokens of each example inside its spans [start, end, start, end, ...], -100 elsewhere."""
    labels = np.full(shape, IGNORE, np.int64)
    for row, example, edges in zip(labels, examples, spans, strict=True):
        for start, end in np.asarray(edges).reshape(-1, 2):
            row[start:end] = example["input_ids"][start:end]
    return labels
