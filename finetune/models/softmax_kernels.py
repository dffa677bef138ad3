"""Triton kernels for logits on a GPU. Of a block of columns: one pass adds to the rows' normalizers, one pass turns logits into
gradients. Of whole rows: two passes turn logits into losses and their gradients.

The operators of torch that compute the same (linear_loss.py, where the kernels do not apply) read and write float32 copies of
the block about ten times. Imported on a GPU alone: torch for CUDA brings triton, torch for CPUs does not.

Shapes: N rows, W columns of a block.
"""
# Operators of triton's language have no types that mypy knows.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc,attr-defined"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_WIDTH, _WARPS = 4096, 8  # columns at once, and warps of a row
SUPPORTED = (torch.bfloat16, torch.float16)


def add_to_normalizers(logits: Tensor, column: Tensor, normalizer: Tensor, at_target: Tensor) -> None:
    """normalizer <- log(exp(normalizer) + sum exp(logits)), and at_target <- the logit of a row's target, where this block
    holds it.

    logits: [N, W], half precision, rows contiguous. column: int64 [N], of the target in this block; outside 0..W-1: another
    block's. normalizer, at_target: float64 [N], changed in place.
    """
    rows, columns = logits.shape
    _add_to_normalizers[(rows,)](
        logits, logits.stride(0), column, normalizer, at_target, columns, WIDTH=_WIDTH, num_warps=_WARPS
    )


def turn_into_gradients(logits: Tensor, column: Tensor, normalizer: Tensor, at_target: Tensor, factor: Tensor) -> None:
    """logits <- factor * exp(logits - normalizer), and factor * at_target at the target.

    normalizer, at_target (the target's probability minus 1), factor: float32 [N]. The others as above; logits are changed.
    """
    rows, columns = logits.shape
    _turn_into_gradients[(rows,)](
        logits, logits.stride(0), column, normalizer, at_target, factor, columns, WIDTH=_WIDTH, num_warps=_WARPS
    )


def turn_into_loss_gradients(logits: Tensor, target_ids: Tensor, losses: Tensor) -> None:
    """losses <- cross-entropy of each row, and logits <- its gradient to them; both 0 where the target is -100.

    logits: [N, V], all columns. target_ids: int64 [N]. losses: float32 [N], changed in place.
    """
    rows, columns = logits.shape
    _turn_into_loss_gradients[(rows,)](
        logits, logits.stride(0), target_ids, losses, columns, WIDTH=_WIDTH, num_warps=_WARPS
    )


def multiply_in_place(tensor: Tensor, factor: Tensor) -> None:
    """tensor <- tensor * factor, in float32 and rounded once. torch would round the factor to the dtype of the tensor first.

    tensor: contiguous, on the device of factor, a float32 scalar.
    """
    count = tensor.numel()
    _multiply_in_place[(triton.cdiv(count, _WIDTH),)](tensor, factor, count, WIDTH=_WIDTH, num_warps=_WARPS)


@triton.jit
def _add_up(start, columns, WIDTH: tl.constexpr):  # noqa: N803
    """The largest of a row of logits, and the sum of exp(logit - largest)."""
    largest = float("-inf")
    total = 0.0
    for offset in range(0, columns, WIDTH):
        places = offset + tl.arange(0, WIDTH)
        x = tl.load(start + places, mask=places < columns, other=float("-inf")).to(tl.float32)
        new = tl.maximum(largest, tl.max(x))
        total = total * tl.exp(largest - new) + tl.sum(tl.exp(x - new))
        largest = new
    return largest, total


@triton.jit
def _add_to_normalizers(logits, stride, column, normalizer, at_target, columns, WIDTH: tl.constexpr):  # noqa: N803
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * stride
    largest, total = _add_up(start, columns, WIDTH)
    target = tl.load(column + row)
    if (target >= 0) & (target < columns):
        tl.store(at_target + row, tl.load(start + target).to(tl.float64))
    before = tl.load(normalizer + row)
    here = largest.to(tl.float64) + tl.log(total).to(tl.float64)
    high, low = tl.maximum(before, here), tl.minimum(before, here)
    more = tl.log(1.0 + tl.exp((low - high).to(tl.float32)))
    tl.store(normalizer + row, tl.where(here == here, high + more.to(tl.float64), here))  # a row with a NaN keeps it


@triton.jit
def _turn_into_gradients(logits, stride, column, normalizer, at_target, factor, columns, WIDTH: tl.constexpr):  # noqa: N803
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * stride
    target, shift = tl.load(column + row), tl.load(normalizer + row)
    scale, held = tl.load(factor + row), tl.load(at_target + row)
    for offset in range(0, columns, WIDTH):
        places = offset + tl.arange(0, WIDTH)
        x = tl.load(start + places, mask=places < columns, other=float("-inf")).to(tl.float32)
        gradient = tl.where(places == target, held, tl.exp(x - shift)) * scale
        tl.store(start + places, gradient.to(logits.dtype.element_ty), mask=places < columns)


@triton.jit
def _turn_into_loss_gradients(logits, stride, target_ids, losses, columns, WIDTH: tl.constexpr):  # noqa: N803
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * stride
    target = tl.load(target_ids + row)
    counts = target >= 0
    held = tl.load(start + tl.maximum(target, 0)).to(tl.float32)  # before any warp writes gradients over it
    largest, total = _add_up(start, columns, WIDTH)
    loss = tl.log(total) - (held - largest)
    tl.store(losses + row, tl.where(counts, loss, 0.0))
    # the target's probability minus 1; near 1 by a series, where the difference would lose all digits
    short = tl.where(loss < 0.01, -loss * (1.0 - loss * (0.5 - loss * (1.0 / 6.0))), tl.exp(-loss) - 1.0)
    for offset in range(0, columns, WIDTH):
        places = offset + tl.arange(0, WIDTH)
        x = tl.load(start + places, mask=places < columns, other=float("-inf")).to(tl.float32)
        gradient = tl.where(places == target, short, tl.exp(x - largest) / total)
        tl.store(start + places, tl.where(counts, gradient, 0.0).to(logits.dtype.element_ty), mask=places < columns)


@triton.jit
def _multiply_in_place(tensor, factor, count, WIDTH: tl.constexpr):  # noqa: N803
    places = tl.program_id(0).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
    x = tl.load(tensor + places, mask=places < count, other=0.0).to(tl.float32)
    tl.store(tensor + places, (x * tl.load(factor)).to(tensor.dtype.element_ty), mask=places < count)
