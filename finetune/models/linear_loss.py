"""Cross-entropy of a linear head, without ever holding the logits of all tokens.

The vocabulary is taken in blocks whose float32 logits fit a budget of bytes. The forward pass adds up each row's normalizer
over the blocks; the backward pass computes each block's logits again, and from them the block's rows of the weight's
gradient, once and for all. Where one block holds all, its logits are kept for the backward pass, which would begin with
them anyway: three matrix products, not four. The other way takes the rows in chunks and computes gradients in the forward
pass: three matrix products too, but the gradient of the whole weight is read and written for every chunk (in float32 twice
its size, or rounded each time), and the incoming gradient is multiplied afterwards, when float16 has underflowed already. It
is taken for bf16 on a GPU, where only the sum is wanted (`summed_loss.py`).

Matrix products run in the dtype of the weight (or autocast's), everything else in float32, the normalizers in float64. Nothing
is asked of the device.

Shapes: N rows (supervised tokens), H hidden size, V vocabulary, W width of a block.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from finetune.models.losses import IGNORE
from finetune.models.onednn_linear import multiply
from finetune.models.summed_loss import ALIGNED, aligned_logits, summed_loss

BLOCK_BYTES = 64 * 2**20  # of float32 logits at once
KERNEL_BLOCK_BYTES = 128 * 2**20  # of half-precision logits, where kernels work on them in place
_NARROWEST = 256  # columns of a block, whatever the number of rows: below, matrix products waste a GPU


@dataclass(frozen=True)
class LogitTransform:
    """What a model does to the output x of its head: cap * tanh(scale * x / cap); without a cap, scale * x."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        scaled = logits if self.scale == 1.0 else logits * self.scale
        return scaled if self.cap is None else torch.tanh(scaled / self.cap) * self.cap

    @property
    def is_identity(self) -> bool:
        return self.scale == 1.0 and self.cap is None


def linear_losses(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target_ids: Tensor,
    transform: LogitTransform,
    *,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of each row, with gradients: float32 [N], 0 where the target is -100.

    hidden: [N, H]. weight: [V, H]. bias: [V]. target_ids: int64 [N]. With zero rows, the result is still connected to the
    graph.
    """
    options = _options(weight, transform, label_smoothing)
    losses: Tensor = _LinearLosses.apply(hidden, weight, bias, target_ids, options)
    return losses


def linear_loss_sum(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target_ids: Tensor,
    transform: LogitTransform,
    *,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The sum of `linear_losses`, with gradients: float32 []."""
    options = _options(weight, transform, label_smoothing)
    kernels = _kernels(hidden, options)
    tensors = [tensor for tensor in (hidden, weight, bias) if tensor is not None]
    if kernels is not None and all(tensor.dtype == torch.bfloat16 for tensor in tensors):
        return summed_loss(hidden, weight, bias, target_ids, kernels)
    return sum_losses(linear_losses(hidden, weight, bias, target_ids, transform, label_smoothing=label_smoothing))


def sum_losses(losses: Tensor) -> Tensor:
    """[N] -> [], added up in float64: thousands of rows in float32 would lose a digit."""
    return losses.sum(dtype=torch.float64).to(losses.dtype)


def column_blocks(rows: int, vocabulary: int, *, kernels: bool = False) -> list[slice]:
    """Blocks of about equal width whose logits fit BLOCK_BYTES, or with kernels KERNEL_BLOCK_BYTES."""
    size = KERNEL_BLOCK_BYTES // 2 if kernels else BLOCK_BYTES // 4
    widest = max(_NARROWEST, size // max(1, rows))
    count = max(1, -(-vocabulary // widest))
    width = -(-vocabulary // count)
    if kernels:
        width = -(-width // ALIGNED) * ALIGNED
    return [slice(start, min(start + width, vocabulary)) for start in range(0, vocabulary, width)]


@dataclass(frozen=True)
class _Options:
    """dtype: of the matrix products. wide: of log-probabilities, float64 for a model in float64."""

    transform: LogitTransform
    label_smoothing: float
    dtype: torch.dtype

    @property
    def wide(self) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.float32)


def _options(weight: Tensor, transform: LogitTransform, label_smoothing: float) -> _Options:
    kind = weight.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    return _Options(transform, label_smoothing, dtype)


@cache
def _load_kernels() -> Any:
    """models/softmax_kernels.py; None without triton, which torch for CUDA brings."""
    try:
        return importlib.import_module("finetune.models.softmax_kernels")
    except ImportError:
        return None


def _kernels(hidden: Tensor, options: _Options) -> Any:
    """What computes a block in place, where logits are what the head gives and half precision; else None."""
    if not _is_on_gpu(hidden) or options.label_smoothing or not options.transform.is_identity:
        return None
    found = _load_kernels()
    return found if found is not None and options.dtype in found.SUPPORTED else None


def _is_on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


class _LinearLosses(Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target_ids: Tensor, options: _Options
    ) -> Tensor:
        normalizer = hidden.new_full(hidden.shape[:1], -torch.inf, dtype=torch.float64)
        at_target, total = torch.zeros_like(normalizer), torch.zeros_like(normalizer)
        kept = list[Tensor]()
        with torch.autocast(hidden.device.type, enabled=False):
            for block in _blocks(hidden, weight, bias, target_ids, options, []):
                normalizer, at_target = block.add_to(normalizer, at_target)
                if options.label_smoothing:
                    total += block.logits.sum(dim=1, dtype=torch.float64)
                if len(block.weight) == len(weight) and any(ctx.needs_input_grad):
                    kept.append(block.logits)
        ctx.options, ctx.kept = options, kept
        ctx.save_for_backward(hidden, weight, bias, target_ids, normalizer, at_target)
        losses = normalizer - at_target
        if smoothing := options.label_smoothing:
            losses = (1.0 - smoothing) * losses + smoothing * (normalizer - total / len(weight))
        return torch.where(target_ids != IGNORE, losses, 0.0).to(options.wide)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, incoming: Tensor) -> Any:  # type: ignore[override]
        hidden, weight, bias, target_ids, normalizer, at_target = ctx.saved_tensors
        options: _Options = ctx.options
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        factor = torch.where(target_ids != IGNORE, incoming, 0.0).to(options.wide).unsqueeze(1)
        # p - 1 at the target, without cancellation: of a confident row, p in float32 is 1 but for a few bits
        at_target = torch.expm1(at_target - normalizer).to(options.wide).unsqueeze(1)
        normalizer = normalizer.to(options.wide).unsqueeze(1)
        d_hidden: Tensor | None = None
        d_weight = torch.empty_like(weight) if wants_weight else None
        d_bias = torch.empty_like(bias) if wants_bias and bias is not None else None
        with torch.autocast(hidden.device.type, enabled=False):
            for block in _blocks(hidden, weight, bias, target_ids, options, ctx.kept):
                d_logits = block.d_logits(normalizer, at_target, factor)
                if wants_hidden:
                    d_hidden = _add_product(d_hidden, d_logits, block.weight, options.wide)
                if d_weight is not None:
                    d_weight[block.columns] = multiply(d_logits.T, block.hidden)
                if d_bias is not None:
                    d_bias[block.columns] = d_logits.sum(dim=0, dtype=options.wide)
        return None if d_hidden is None else d_hidden.to(hidden.dtype), d_weight, d_bias, None, None


class _Block:
    """Logits of all rows for some columns of the vocabulary.

    logits: [N, W] as the model makes them of its head; `d_logits` gives them up. place: int64 [N], where in this block the
    target would be. column: int64 [N, 1], the same, but any column of the block where the target is not `inside`, bool [N].
    """

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target_ids: Tensor,
        columns: slice,
        options: _Options,
        logits: Tensor | None,
    ) -> None:
        """hidden: in options.dtype. logits: those of an earlier block of the same columns; None: they are computed."""
        self.hidden, self.columns, self.options = hidden, columns, options
        self.vocabulary, self.kernels = len(weight), _kernels(hidden, options)
        self.weight = weight[columns].to(options.dtype)
        self.logits = self._compute_logits(bias) if logits is None else logits
        self.place = target_ids - columns.start

    def _compute_logits(self, bias: Tensor | None) -> Tensor:
        options, added = self.options, None if bias is None else bias[self.columns].to(self.options.dtype)
        if self.kernels is not None:
            logits = aligned_logits(self.hidden, self.weight, added)
        elif added is None:
            logits = multiply(self.hidden, self.weight.T)
        else:
            logits = torch.addmm(added, self.hidden, self.weight.T)
        return logits if options.transform.is_identity else options.transform(logits.to(options.wide))

    @cached_property
    def inside(self) -> Tensor:
        return (self.place >= 0) & (self.place < self.columns.stop - self.columns.start)

    @cached_property
    def column(self) -> Tensor:
        return self.place.clamp(0, self.columns.stop - self.columns.start - 1).unsqueeze(1)

    def add_to(self, normalizer: Tensor, at_target: Tensor) -> tuple[Tensor, Tensor]:
        """Normalizers with this block's columns, and logits of targets with those that this block holds: float64 [N]."""
        if self.kernels is not None:
            self.kernels.add_to_normalizers(self.logits, self.place, normalizer, at_target)
            return normalizer, at_target
        held = self.logits.gather(1, self.column).squeeze(1)
        return torch.logaddexp(normalizer, self._normalizer()), torch.where(self.inside, held, at_target)

    def _normalizer(self) -> Tensor:
        """log sum exp of each row: float64 [N].

        The largest log-probability is minus the logarithm of the sum of exp(logit - largest), in one pass of a fused kernel.
        """
        largest = torch.log_softmax(self.logits, dim=1, dtype=self.options.wide).amax(dim=1)
        return self.logits.amax(dim=1).double() - largest.double()

    def d_logits(self, normalizer: Tensor, at_target: Tensor, factor: Tensor) -> Tensor:
        """Gradient of the losses to the head's output, times factor: [N, W] in options.dtype. Gives the logits up.

        normalizer, at_target (p - 1), factor: [N, 1].
        """
        logits = self.logits
        del self.logits
        if self.kernels is not None:
            self.kernels.turn_into_gradients(
                logits, self.place, normalizer.squeeze(1), at_target.squeeze(1), factor.squeeze(1)
            )
            return logits
        options, smoothing = self.options, self.options.label_smoothing
        transform, spread, slope = options.transform, smoothing / self.vocabulary, None
        if transform.cap is not None:
            slope = 1.0 - (logits / transform.cap).square_()
        gradient = (logits.sub_(normalizer) if logits.dtype == normalizer.dtype else logits - normalizer).exp_()
        del logits
        held = gradient.gather(1, self.column)
        gradient.scatter_(1, self.column, torch.where(self.inside.unsqueeze(1), at_target + smoothing, held))
        if smoothing:
            gradient.sub_(spread)
        if slope is not None:
            gradient.mul_(slope)
        factor = factor if transform.scale == 1.0 else factor * transform.scale
        return gradient.mul_(factor).to(options.dtype)


def _blocks(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target_ids: Tensor, options: _Options, kept: list[Tensor]
) -> Iterator[_Block]:
    """One after the other: a block is gone before the next one is made, if nobody keeps it. kept: logits of the only block,
    which are taken out; a second backward pass computes them again.
    """
    hidden = hidden.to(options.dtype)
    for columns in column_blocks(len(hidden), len(weight), kernels=_kernels(hidden, options) is not None):
        yield _Block(hidden, weight, bias, target_ids, columns, options, kept.pop() if kept else None)


def _add_product(total: Tensor | None, left: Tensor, right: Tensor, wide: torch.dtype) -> Tensor:
    """total + left @ right, without rounding the sum to the dtype of the product. total: overwritten; None: there is none."""
    if total is None:
        return multiply(left, right).to(wide)
    if _is_on_gpu(left) and total.dtype == left.dtype:
        return total.addmm_(left, right)
    return total.add_(multiply(left, right))
