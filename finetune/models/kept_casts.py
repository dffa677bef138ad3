"""Casts of weights to the dtype of products, kept while no weight changes.

Layers that keep float32 weights and multiply in half precision cast them for each product: in the forward pass, when a
checkpointed layer is computed again, in the backward pass, and in each micro-batch again. Within `keeping_casts`, which an
engine opens around the micro-batches of a step, a weight is cast once. Nothing is kept beyond it, so that no copy can be older
than the weight: not after an update, a load, or a gathering of shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_open: list[dict[tuple[Tensor, torch.dtype], Tensor]] = []  # one for each `keeping_casts` that is under way


@contextmanager
def keeping_casts() -> Iterator[None]:
    """Within, no weight may change. Each that is cast takes the memory of its copy until the end; of several, one within the
    other, until that of the outermost.
    """
    _open.append(_open[-1] if _open else {})
    try:
        yield
    finally:
        _open.pop()


def cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight in `dtype`, without gradients of its own; the weight itself where that is its dtype. What torch.compile traces
    casts each time.
    """
    if torch.compiler.is_compiling() or weight.dtype == dtype or not _open:
        return weight.to(dtype)
    kept = _open[-1]
    if (weight, dtype) not in kept:
        kept[weight, dtype] = weight.detach().to(dtype)
    return kept[weight, dtype]
