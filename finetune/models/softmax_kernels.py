"""Triton kernels for logits on a GPU. Of a block of columns: one pass adds to the rows' normalizers, one pass turns logits into
gradients. Of whole rows: one pass, which reads each logit once and writes once, turns logits into losses and their gradients,
but for a factor of each row.

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
_FURTHEST = tl.constexpr(40.0)  # above what is subtracted from a row; exp(40) is far from the end of bf16
_VECTOR = tl.constexpr(16)  # numbers that a thread reads at once
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


def turn_into_loss_gradients(logits: Tensor, target_ids: Tensor, losses: Tensor, scales: Tensor) -> None:
    """losses <- cross-entropy of each row, and logits * scales <- its gradient to them; all 0 where the target is -100.

    With c subtracted from a row, its gradient is exp(logit - c) / total, and at the target minus the others' part of the total.
    The division waits, as the total is known at the end of the row: products with the row can be scaled later. c is the
    largest of the first columns: half a row that fits no multiprocessor need not be read twice for the largest of all.

    logits: bf16 [N, V], all columns, rows a multiple of 16 numbers apart (`aligned_logits`): what is between them is changed
    as well. target_ids: int64 [N]. losses, scales: float32 [N], changed in place.
    """
    rows, columns = logits.shape
    if logits.stride(0) % 16:
        raise ValueError(f"rows of logits are {logits.stride(0)} numbers apart, which is not a multiple of 16")
    _turn_into_loss_gradients[(rows,)](
        logits, logits.stride(0), target_ids, losses, scales, columns, WIDTH=_WIDTH, num_warps=_WARPS
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
def _turn_into_loss_gradients(logits, stride, target_ids, losses, scales, columns, WIDTH: tl.constexpr):  # noqa: N803
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * stride
    target = tl.load(target_ids + row)
    padded = tl.cdiv(columns, _VECTOR) * _VECTOR  # known to be a multiple, so that whole vectors are read and written
    if target < 0:
        for offset in range(0, padded, WIDTH):
            places = offset + tl.arange(0, WIDTH)
            tl.store(start + places, tl.zeros([WIDTH], logits.dtype.element_ty), mask=places < padded)
        tl.store(losses + row, 0.0)
        tl.store(scales + row, 0.0)
    else:
        held = tl.load(start + target).to(tl.float32)  # before any warp writes over it
        shift = float("-inf")
        others = 0.0  # sum of exp(logit - shift) over all columns but the target
        for offset in range(0, padded, WIDTH):
            places = offset + tl.arange(0, WIDTH)
            x = tl.load(start + places, mask=places < padded, other=float("-inf")).to(tl.float32)
            x = tl.where(places < columns, x, float("-inf"))
            largest = tl.max(x)
            if largest > shift + _FURTHEST:  # in the first columns, and hardly ever again
                factor = tl.exp(shift - largest)
                others *= factor
                _multiply_row(start, offset, factor, WIDTH)
                shift = largest
            power = tl.exp(x - tl.where(shift == float("-inf"), 0.0, shift))
            others += tl.sum(tl.where(places == target, 0.0, power))
            tl.store(start + places, power.to(logits.dtype.element_ty), mask=places < padded)
        total = others + tl.exp(held - shift)
        ratio = others * tl.exp(shift - held)
        # near probability 1 by a series, where the logarithm of a sum would lose all digits
        short = ratio * (1.0 - ratio * (0.5 - ratio * (1.0 / 3.0)))
        tl.store(losses + row, tl.where(ratio < 0.01, short, tl.log(total) + (shift - held)))
        tl.store(scales + row, 1.0 / total)
        tl.debug_barrier()  # every warp has written
        tl.store(start + target, (-others).to(logits.dtype.element_ty))


@triton.jit
def _multiply_row(start, stop, factor, WIDTH: tl.constexpr):  # noqa: N803
    """What was written before column `stop`, a multiple of WIDTH."""
    for offset in range(0, stop, WIDTH):
        places = offset + tl.arange(0, WIDTH)
        x = tl.load(start + places).to(tl.float32)
        tl.store(start + places, (x * factor).to(start.dtype.element_ty))


@triton.jit
def _multiply_in_place(tensor, factor, count, WIDTH: tl.constexpr):  # noqa: N803
    places = tl.program_id(0).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
    x = tl.load(tensor + places, mask=places < count, other=0.0).to(tl.float32)
    tl.store(tensor + places, (x * tl.load(factor)).to(tensor.dtype.element_ty), mask=places < count)
