"""The loss head alone, forward and backward: ours, Liger's, or only the three matrix products that it cannot do without.

python -m benchmarks.gpu.head ours|liger|products TOKENS VOCABULARY HIDDEN
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable

import torch

from benchmarks.gpu.jobs import tell, wait_for_turn

Tensor = torch.Tensor
MODULES = {"ours": "finetune.models.linear_loss", "liger": "liger_kernel.ops.fused_linear_cross_entropy"}
REPEATS = 10
WARM_UPS = 3  # not timed, nor their memory: Triton compiles, and tries block sizes


def ours(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """finetune's."""
    from finetune.models.linear_loss import LogitTransform, linear_loss_sum

    return linear_loss_sum(hidden, weight, None, targets, LogitTransform())


def liger(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Liger's fused linear cross-entropy."""
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction as Fused

    result = Fused.apply(hidden, weight, targets, None, None, -100, 0.0, 0.0, "sum")
    return result[0] if isinstance(result, tuple) else result


def products(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Logits, and the two products of the backward pass, in pieces of a size that is fast (8,192 columns of 8,192 tokens took
    18.1 ms on an H100, 2,048 took 18.5); no loss.
    """
    piece = max(256, 2**26 // len(hidden))
    hidden.grad, weight.grad = torch.zeros_like(hidden), torch.empty_like(weight)
    with torch.no_grad():
        for start in range(0, len(weight), piece):
            rows = weight[start : start + piece]
            logits = hidden @ rows.T
            hidden.grad.addmm_(logits, rows)
            torch.mm(logits.T, hidden, out=weight.grad[start : start + piece])
    return torch.zeros((), requires_grad=True)


def main() -> None:
    """See the head of the file."""
    side, tokens, vocabulary, width = sys.argv[1], *map(int, sys.argv[2:5])
    run: Callable[[Tensor, Tensor, Tensor], Tensor] = {"ours": ours, "liger": liger, "products": products}[side]
    if side in MODULES:
        importlib.import_module(MODULES[side])
    wait_for_turn()
    gpu = torch.cuda.is_available()
    device = "cuda" if gpu else "cpu"
    hidden = torch.randn(tokens, width, device=device, dtype=torch.bfloat16, requires_grad=True)
    weight = (torch.randn(vocabulary, width, device=device, dtype=torch.bfloat16) * 0.02).requires_grad_()
    targets = torch.randint(0, vocabulary, (tokens,), device=device)
    seconds = []
    for repeat in range(WARM_UPS + (REPEATS if gpu else 3)):
        hidden.grad = weight.grad = None
        if gpu:
            torch.cuda.synchronize()
            if repeat == WARM_UPS:
                torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        run(hidden, weight, targets).backward()
        if gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    timed = sorted(seconds[WARM_UPS:])
    middle = timed[len(timed) // 2]
    peak = torch.cuda.max_memory_allocated() if gpu else 0
    tell(step_seconds=middle, tokens_per_second=tokens / middle, peak_bytes=peak)


if __name__ == "__main__":
    main()
