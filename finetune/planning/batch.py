"""Batch arithmetic: how a global batch is dealt to replicas. Only the speed depends on it, never the numbers."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True)
class BatchPlan:
    """global_batch = replicas x share, in micro-batches of at most micro_batch examples; accumulation of them a step."""

    global_batch: int
    replicas: int
    micro_batch: int
    accumulation: int


def plan_batch(
    global_batch: int, replicas: int, micro_batch: int | str, default_micro_batch: int, *, at_least: int = 1
) -> BatchPlan:
    """The recipe's global batch over `replicas`: copies of the model. at_least: micro-batches of a step that auto should
    make (a pipeline is idle in a short step), but none of one example, of which BatchNorm can tell no statistics.

    A share that no micro-batch divides is no fault: the dealing makes some micro-batches smaller, and every loss is a
    sum over units divided by the global count, so the numbers stay the same.
    """
    share = ceil(global_batch / replicas)
    if micro_batch == "auto":
        rounds = max(ceil(share / default_micro_batch), min(at_least, share // 2))
        size = ceil(share / rounds)
    else:
        size = min(int(micro_batch), share)
    return BatchPlan(global_batch=global_batch, replicas=replicas, micro_batch=size, accumulation=ceil(share / size))
