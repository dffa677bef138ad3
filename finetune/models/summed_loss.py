"""The sum of a linear head's cross-entropy, with its gradients computed in the forward pass: three matrix products, not four.

For bf16 on a GPU, where nothing but the sum is asked for. Rows are taken in chunks: the logits of a chunk become the
gradients of its losses in place (`softmax_kernels.py`), and are multiplied at once with the weight and the hidden states. The
factor of the sum comes in the backward pass, and is multiplied then: bf16 has the range of float32, so that nothing has
underflowed. (float16 has not: `linear_loss.py` computes logits again instead.) The weight's gradient is rounded to bf16 after
each chunk, as it is after each micro-batch.

Measured on an H100 (8,192 rows, vocabulary 128,256, hidden size 2,048): 20.8 ms, with logits computed again 28.8 ms, the three
products alone 18.1 ms.

Shapes: N rows (supervised tokens), H hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

CHUNK_BYTES = 512 * 2**20  # of logits at once
_FEWEST = 256  # rows of a chunk, whatever the vocabulary: below, matrix products waste a GPU
ALIGNED = 64  # numbers, of which there is a multiple between the rows of logits


def summed_loss(hidden: Tensor, weight: Tensor, bias: Tensor | None, target_ids: Tensor, kernels: Any) -> Tensor:
    """The sum of all rows' losses, with gradients: float32 [].

    hidden: bf16 [N, H]. weight: bf16 [V, H]. bias: bf16 [V]. target_ids: int64 [N], -100 where there is no target. kernels:
    the module softmax_kernels.
    """
    loss: Tensor = _SummedLoss.apply(hidden, weight, bias, target_ids, kernels)
    return loss


def row_chunks(rows: int, vocabulary: int) -> list[slice]:
    """Chunks of about equal length whose bf16 logits fit CHUNK_BYTES."""
    most = max(_FEWEST, CHUNK_BYTES // (2 * vocabulary))
    count = max(1, -(-rows // most))
    length = max(1, -(-rows // count))
    return [slice(start, min(start + length, rows)) for start in range(0, rows, length)]


def aligned_logits(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """rows @ weight.T + bias, with rows that begin at multiples of 128 bytes, without gradients. Products from and to matrices
    of odd widths are slow on a GPU, as vocabularies of 50,257 or 49,155 tokens are odd.
    """
    width = len(weight)
    logits = rows.new_empty(len(rows), -(-width // ALIGNED) * ALIGNED)[:, :width]
    if bias is None:
        return torch.mm(rows, weight.T, out=logits)
    return torch.addmm(bias, rows, weight.T, out=logits)


class _SummedLoss(Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target_ids: Tensor, kernels: Any
    ) -> Tensor:
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        losses = hidden.new_zeros(len(hidden), dtype=torch.float32)
        target_ids = target_ids.contiguous()  # kernels count on it
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        d_weight = torch.empty_like(weight) if wants_weight else None
        d_bias = torch.zeros_like(bias, dtype=torch.float32) if wants_bias and bias is not None else None
        with torch.autocast(hidden.device.type, enabled=False):
            chunks = row_chunks(len(hidden), len(weight))
            for chunk in chunks:
                rows = hidden[chunk]
                logits = aligned_logits(rows, weight, bias)
                kernels.turn_into_loss_gradients(logits, target_ids[chunk], losses[chunk])
                if d_hidden is not None:
                    torch.mm(logits, weight, out=d_hidden[chunk])
                if d_weight is not None:
                    d_weight.addmm_(logits.T, rows, beta=min(chunk.start, 1))  # the first one writes: nothing is there
                if d_bias is not None:
                    d_bias += logits.sum(dim=0, dtype=torch.float32)
        if not chunks and d_weight is not None:
            d_weight.zero_()
        ctx.gradients, ctx.kernels = (d_hidden, d_weight, d_bias), kernels
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        return losses.sum(dtype=torch.float64).float()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, incoming: Tensor) -> Any:  # type: ignore[override]
        gradients, ctx.gradients = ctx.gradients, None  # which are not there for a second backward pass
        if gradients is None:
            raise RuntimeError("the gradients of a summed loss are given once")
        found = []
        for gradient, dtype in zip(gradients, ctx.dtypes, strict=True):
            if gradient is not None:
                ctx.kernels.multiply_in_place(gradient, incoming)
                gradient = gradient.to(dtype)
            found.append(gradient)
        return *found, None, None
