"""The loss of a language model inside its forward pass, so that wrappers, ZeRO-3 and autocast see one module.

ZeRO-3 gathers the output head only while the wrapped module runs, and Accelerate turns what the forward pass returns into
float32: both are reasons to compute the loss there and to return the loss of the supervised tokens in place of logits of
all tokens.

Shapes: B rows, L tokens, V vocabulary, N supervised tokens.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from finetune.models.losses import cross_entropy_each, cross_entropy_rows, cross_entropy_sum


def install_loss_head(model: nn.Module) -> None:
    """Let `model` take `target_ids` and return {"loss_sum", "token_losses"}; without them it works as before.

    Keyword arguments that `model(...)` takes from now on:
        target_ids        int64 [N] (or [B * L] without target_positions, -100 where there is no target)
        target_positions  int64 [N], positions in the flattened logits [B * L, V]; None: all of them
        label_smoothing   of the loss sum
        per_token         whether token_losses carry gradients; then loss_sum is their sum
        loss_divisor      tensor []; the loss sum is divided by it (the global number of units)

    loss_sum: float32 []. token_losses: float32 [N], in evaluation mode or with per_token, else None.
    """
    forward = model.forward

    @functools.wraps(forward)  # keeps the signature, which generate() inspects
    def forward_or_loss(*args: Any, target_ids: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if target_ids is None:
            return forward(*args, **kwargs)
        names = ("target_positions", "label_smoothing", "per_token", "loss_divisor")
        options = {name: kwargs.pop(name) for name in names if name in kwargs}
        return _losses(forward(*args, **kwargs).logits, target_ids, **options)

    model.forward = forward_or_loss  # type: ignore[method-assign]


def _losses(
    logits: torch.Tensor,
    target_ids: torch.Tensor,
    *,
    target_positions: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    per_token: bool = False,
    loss_divisor: torch.Tensor | None = None,
) -> dict[str, torch.Tensor | None]:
    rows = logits.flatten(0, 1)
    if target_positions is not None:
        rows = rows.index_select(0, target_positions)
    if per_token:
        token_losses = cross_entropy_rows(rows, target_ids)
        return {"loss_sum": token_losses.sum(), "token_losses": token_losses}
    if not torch.is_grad_enabled():
        return {
            "loss_sum": cross_entropy_sum(rows, target_ids, label_smoothing=label_smoothing),
            "token_losses": cross_entropy_each(rows, target_ids),
        }
    loss_sum = cross_entropy_sum(rows, target_ids, label_smoothing=label_smoothing)
    return {"loss_sum": loss_sum if loss_divisor is None else loss_sum / loss_divisor, "token_losses": None}
