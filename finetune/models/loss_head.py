"""The loss of a language model inside its forward pass, computed by its output head from the supervised tokens alone.

ZeRO-3 gathers the output head only while the head's own forward pass runs, and wrappers, autocast and gradient hooks know
modules. So while a loss is wanted, the head answers with losses where it would answer with logits: it is called by the
model with the hidden states of all tokens, takes the supervised ones and computes their loss piece by piece
(`linear_loss.py`), and the logits of all tokens never exist. What the model then does to its logits (a scale, a soft cap)
was found out before, by a probe (`logit_probe.py`), and is part of the loss.

Three ways, in order of preference:
- a plain `nn.Linear`: block by block of the vocabulary;
- any other module (a LoRA, a saved copy, a quantized or sliced head): called chunk by chunk, each computed again in the
  backward pass where there is more than one (ZeRO-3: called once, with all supervised tokens);
- a model whose forward pass is not a body with a head behind it: the loss of its logits, as it gives them.

Shapes: B rows, L tokens, V vocabulary, H hidden size, N supervised tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from finetune.models.linear_loss import LogitTransform, linear_loss_sum, linear_losses, sum_losses
from finetune.models.logit_probe import Sealed, answering, find_transform, output_head
from finetune.models.losses import cross_entropy_each, cross_entropy_rows, cross_entropy_sum
from finetune.models.onednn_linear import is_plain_linear

CHUNK_BYTES = 256 * 2**20  # of float32 logits of a head that is not a plain nn.Linear


def install_loss_head(model: nn.Module) -> str:
    """Let `model` take `target_ids` and return {"loss_sum", "token_losses"}; without them it works as before.

    Keyword arguments that `model(...)` takes from now on:
        target_ids        int64 [N] (or [B * L] without target_positions, -100 where there is no target)
        target_positions  int64 [N], positions in the flattened tokens [B * L]; None: all of them
        label_smoothing   of the loss sum
        per_token         whether token_losses carry gradients; then loss_sum is their sum

    loss_sum: float32 []. token_losses: float32 [N], in evaluation mode or with per_token, else None.
    Returns why the logits of all tokens are computed, "" where they are not. Computes nothing with the model's weights.
    """
    forward = model.forward
    transform = find_transform(model)

    @functools.wraps(forward)  # keeps the signature, which generate() inspects
    def forward_or_loss(*args: Any, target_ids: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if target_ids is None:
            return forward(*args, **kwargs)
        names = ("target_positions", "label_smoothing", "per_token")
        request = _Request(target_ids, **{name: kwargs.pop(name) for name in names if name in kwargs})
        if isinstance(transform, str):
            return request.of_logits(forward(*args, **kwargs).logits)
        head: Any = output_head(model)  # an engine may have replaced it since
        with answering(head, request.answer(head, transform)):
            result = forward(*args, **kwargs).logits
        if isinstance(result, Sealed):
            return {"loss_sum": result[0], "token_losses": result[1]}
        return request.of_logits(result)

    model.forward = forward_or_loss  # type: ignore[method-assign]
    return transform if isinstance(transform, str) else ""


@dataclass(frozen=True)
class _Request:
    """What a call wants to know; see `install_loss_head`."""

    target_ids: Tensor
    target_positions: Tensor | None = None
    label_smoothing: float = 0.0
    per_token: bool = False

    def answer(self, head: nn.Module, transform: LogitTransform) -> Callable[[Tensor], Sealed]:
        """What the head computes in place of its forward pass: hidden states [B, L, H] -> losses."""
        call = head.forward
        plain = is_plain_linear(head)

        def losses(hidden: Tensor) -> Sealed:
            rows = self._supervised(hidden)
            if plain:
                return Sealed(self._of_linear(head, rows, transform))
            return Sealed(self._of_module(call, rows, transform, _chunks(head, len(rows))))

        return losses

    def _supervised(self, values: Tensor) -> Tensor:
        rows = values.flatten(0, -2)
        return rows if self.target_positions is None else rows.index_select(0, self.target_positions)

    def _of_linear(self, head: Any, rows: Tensor, transform: LogitTransform) -> tuple[Tensor, Tensor | None]:
        arguments, smoothing = (rows, head.weight, head.bias, self.target_ids, transform), self.label_smoothing
        if torch.is_grad_enabled() and not self.per_token:
            return linear_loss_sum(*arguments, label_smoothing=smoothing), None
        token_losses = linear_losses(*arguments)
        if smoothing and not self.per_token:
            return sum_losses(linear_losses(*arguments, label_smoothing=smoothing)), token_losses
        return sum_losses(token_losses), token_losses

    def _of_module(
        self, call: Callable[[Tensor], Tensor], rows: Tensor, transform: LogitTransform, parts: list[slice]
    ) -> tuple[Tensor, Tensor | None]:
        """Chunks are computed again in the backward pass, where there are several."""

        def of_chunk(rows: Tensor, target_ids: Tensor) -> tuple[Tensor, Tensor | None]:
            return self._losses(transform(call(rows.unsqueeze(0)).squeeze(0)), target_ids)

        if len(parts) <= 1:
            return of_chunk(rows, self.target_ids)
        run = functools.partial(checkpoint, of_chunk, use_reentrant=False) if torch.is_grad_enabled() else of_chunk
        sums, losses = zip(*(run(rows[part], self.target_ids[part]) for part in parts), strict=True)
        return torch.stack(sums).sum(), None if losses[0] is None else torch.cat(losses)

    def of_logits(self, logits: Tensor) -> dict[str, Tensor | None]:
        """Logits of all tokens [B, L, V] -> losses."""
        loss_sum, token_losses = self._losses(self._supervised(logits), self.target_ids)
        return {"loss_sum": loss_sum, "token_losses": token_losses}

    def _losses(self, logits: Tensor, target_ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """logits: [N, V]."""
        if self.per_token:
            token_losses = cross_entropy_rows(logits, target_ids)
            return token_losses.sum(), token_losses
        loss_sum = cross_entropy_sum(logits, target_ids, label_smoothing=self.label_smoothing)
        return loss_sum, None if torch.is_grad_enabled() else cross_entropy_each(logits, target_ids)


def _chunks(head: Any, rows: int) -> list[slice]:
    """Of a head that is called once for each chunk; a single one where ZeRO-3 gathers weights at each call, because ranks
    have unequal numbers of supervised tokens and must call it equally often.
    """
    if any(hasattr(weight, "ds_id") for weight in head.parameters()):
        return [slice(0, rows)]
    sizes = (getattr(head, name, None) for name in ("out_features", "num_embeddings"))
    vocabulary = next((int(size) for size in sizes if size), 1 << 18)
    most = max(1, CHUNK_BYTES // (4 * vocabulary))
    return [slice(start, min(start + most, rows)) for start in range(0, rows, most)]
