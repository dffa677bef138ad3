"""Seconds and memory to plan an epoch of 200,000 and of 5 million examples: packing, costs of packs, order of steps.

    python benchmarks/packing_speed.py        # results: packing.md

On one core. Memory is tracemalloc's peak relative to the array of lengths (int64), including the plan itself. Targets: 0.5 s,
15 s and 3 times.
"""

from __future__ import annotations

import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.packing_efficiency import COST, MIXES
from finetune.data.order.assignment import assign, assign_packs
from finetune.data.order.packing import Packing
from finetune.data.order.schedule import Schedule


def main() -> None:
    print("| examples | mix | packs | seconds | memory / lengths | fill | assign a step of 32 packs | rearranged |")
    print("|---|---|---|---|---|---|---|---|")
    for count in (200_000, 5_000_000):
        for mix in MIXES:
            lengths = mix.lengths(count)
            costs = COST.of(lengths)
            packing = Packing(lengths, mix.capacity)

            def plan(batch: int, costs: np.ndarray = costs, packing: Packing = packing) -> Schedule:
                return Schedule(costs, seed=17, global_batch=batch, packing=packing)

            batch = round(32 * mix.capacity / lengths.mean())
            seconds = min(_timed(lambda plan=plan, batch=batch: plan(batch)) for _ in range(3))
            tracemalloc.start()
            schedule = plan(batch)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            step = schedule.step(0)
            flat = np.concatenate([np.array(item) for item in step.items])
            sizes = [len(item) for item in step.items]
            whole = _timed(lambda step=step: assign(step.costs, 8))
            anew = _timed(
                lambda sizes=sizes, flat=flat, lengths=lengths, mix=mix, costs=costs: assign_packs(
                    sizes, costs[flat], lengths[flat], 6, capacity=mix.capacity
                )
            )
            fill = lengths.sum() / (schedule.num_items * mix.capacity)
            print(
                f"| {count:,} | {mix.name} | {schedule.num_items:,} | {seconds:.2f} | {peak / lengths.nbytes:.2f} "
                f"| {fill:.4f} | {whole * 1e3:.1f} ms | {anew * 1e3:.0f} ms |",
                flush=True,
            )


def _timed(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
