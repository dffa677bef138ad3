"""The norm of all gradients, exact to the last digits whatever their size, and without asking the device for it.

A sum of squares in float32 loses digits as it grows: over the 28M elements of a tied embedding, torch 2.11 on a CPU was wrong
by 5e-5. Squares are summed in float64 here, as DeepSpeed does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

_INDEXED = 1 << 30  # elements that the kernel for many tensors counts in 32 bits
_CHUNK = 1 << 22  # elements that are float64 at once where the device's kernel makes a copy: 32 MiB


def total_norm(gradients: Iterable[torch.Tensor]) -> torch.Tensor:
    """The L2 norm of all of them: float64 [], on their device; 0 (on the CPU) of none."""
    found = [gradient.detach() for gradient in gradients]
    if not found:
        return torch.zeros((), dtype=torch.float64)
    if found[0].device.type == "cuda":  # a few kernels for all of them, which add up in float64 without a copy
        parts = [part for gradient in found for part in gradient.reshape(-1).split(_INDEXED)]
        norms = torch._foreach_norm(parts, 2, dtype=torch.float64)
    else:
        parts = [part for gradient in found for part in gradient.reshape(-1).split(_CHUNK)]
        norms = tuple(torch.linalg.vector_norm(part, dtype=torch.float64) for part in parts)
    return torch.linalg.vector_norm(torch.stack(norms))


def clip_gradients(parameters: Iterable[torch.nn.Parameter], limit: float) -> torch.Tensor:
    """Scale gradients in place to a norm of at most `limit` (0: never); their norm before, as `total_norm` gives it."""
    trained = [parameter for parameter in parameters if parameter.grad is not None]
    norm = total_norm(parameter.grad for parameter in trained if parameter.grad is not None)
    clip_to_norm(trained, limit, norm)
    return norm


def clip_to_norm(parameters: Sequence[torch.nn.Parameter], limit: float, norm: torch.Tensor) -> None:
    """Scale gradients in place by what takes `norm`, float [] of all gradients, to at most `limit` (0: never)."""
    if limit > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm.float())


def clip_factor(limit: float, norm: torch.Tensor) -> torch.Tensor:
    """What `clip_to_norm` multiplies gradients by: float32 [], on the device of `norm`."""
    norm = norm.float()
    return (limit / (norm + 1e-6)).clamp(max=1.0) if limit > 0 else torch.ones_like(norm)
