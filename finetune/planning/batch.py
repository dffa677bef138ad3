"""Batch arithmetic: how a global batch is distributed over replicas. It affects the speed only, never the numbers."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True)
class BatchPlan:
    """global_batch examples over `replicas`, in micro-batches of at most micro_batch examples, `accumulation` of them per
    optimizer step.
    """

    global_batch: int
    replicas: int
    micro_batch: int
    accumulation: int


def plan_batch(
    global_batch: int, replicas: int, micro_batch: int | str, default_micro_batch: int, *, at_least: int = 1
) -> BatchPlan:
    """Split the recipe's global batch over `replicas`, which are copies of the model.

    at_least: micro-batches per step that an automatic micro-batch should give (a pipeline is idle in a short step), but
    none of one example, from which BatchNorm cannot compute statistics.

    A share that is not a multiple of the micro-batch is no fault: some micro-batches are smaller, and every loss is a sum
    over units divided by the global count, so the numbers stay the same.
    """
    share = ceil(global_batch / replicas)
    if micro_batch == "auto":
        rounds = max(ceil(share / default_micro_batch), min(at_least, share // 2))
        size = ceil(share / rounds)
    else:
        size = min(int(micro_batch), share)
    return BatchPlan(global_batch=global_batch, replicas=replicas, micro_batch=size, accumulation=ceil(share / size))
