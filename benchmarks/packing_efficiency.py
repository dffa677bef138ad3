"""Utilization of 8 ranks: our packing and load balancing compared to TRL's packing and other published methods.

    python benchmarks/packing_efficiency.py [--examples 50000]        # results: packing.md

Efficiency = cost of all examples / (ranks x cost of the busiest rank), summed over steps; a segment costs L + 1.75e-5 L^2,
as in an 8B Llama. All methods get the same lengths, and attention within segments only (the best case for each of them).
`free`: ranks synchronize once per step (DDP, ZeRO-1); `lockstep`: after every pack (ZeRO-2 and 3 communicate within it).
TRL: pip install --no-deps 'trl==1.16.*' (skipped if not installed).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from finetune.data.order.assignment import assign, assign_packs
from finetune.data.order.cost import CostModel
from finetune.data.order.packing import Packing, pack
from finetune.data.order.schedule import Schedule

COST = CostModel(1.0, 1.75e-5)
ROWS = 1000  # what `datasets.map(batched=True)` hands to a packing function at once

PackCosts = list[np.ndarray]  # the lengths of each pack's segments
Steps = Iterator[list[list[float]]]  # of each step and rank the costs of its packs


@dataclass(frozen=True)
class Mix:
    """Lengths as a lognormal of this median and sigma, clipped to the capacity."""

    name: str
    median: float
    sigma: float
    capacity: int

    def lengths(self, count: int) -> np.ndarray:
        rng = np.random.default_rng(17).lognormal(np.log(self.median), self.sigma, count)
        return np.clip(np.rint(rng), 1, self.capacity).astype(np.int64)


MIXES = (Mix("chat", 300, 1.0, 4096), Mix("reasoning", 2000, 1.0, 16384), Mix("long-mix", 1500, 1.6, 65536))


# ---- packing as others do it: lengths, capacity -> packs ----


def pack_trl(lengths: np.ndarray, capacity: int) -> PackCosts:
    """TRL's own `pack_dataset(strategy="bfd")` on rows of these lengths (int8 tokens)."""
    import pyarrow as pa
    from datasets import Dataset, disable_progress_bars
    from trl import pack_dataset

    disable_progress_bars()
    packs: PackCosts = []
    for start in range(0, len(lengths), 10 * ROWS):  # slices that stay small in memory; TRL packs 1,000 rows at a time
        some = lengths[start : start + 10 * ROWS]
        offsets = np.concatenate(([0], np.cumsum(some))).astype(np.int64)
        tokens = pa.LargeListArray.from_arrays(offsets, np.zeros(offsets[-1], dtype=np.int8))
        with tempfile.TemporaryDirectory() as cache:
            table = Dataset(pa.table({"input_ids": tokens}))
            packed = pack_dataset(table, capacity, "bfd", {"cache_file_name": f"{cache}/packed.arrow"})
            packs += [np.asarray(each) for each in packed.with_format(None)["seq_lengths"]]
    return packs


def by_rows(pack_rows: Callable[[np.ndarray, int], PackCosts]) -> Callable[[np.ndarray, int], PackCosts]:
    """A packing function applied to 1,000 rows at a time."""
    return lambda lengths, capacity: [
        each for start in range(0, len(lengths), ROWS) for each in pack_rows(lengths[start : start + ROWS], capacity)
    ]


def best_fit_decreasing(lengths: np.ndarray, capacity: int) -> PackCosts:
    packs = pack(lengths, capacity)
    return [lengths[packs[p]] for p in range(len(packs))]


def first_fit_decreasing(lengths: np.ndarray, capacity: int) -> PackCosts:
    """Longest first into the first bin with room (multipack samplers)."""
    room = np.full(len(lengths), capacity)
    packs: list[list[int]] = [[] for _ in lengths]
    for length in np.sort(lengths)[::-1].tolist():
        chosen = int(np.argmax(room >= length))
        room[chosen] -= length
        packs[chosen].append(length)
    return [np.array(each) for each in packs if each]


def greedy_knapsack(lengths: np.ndarray, capacity: int) -> PackCosts:
    """Each pack takes the longest example that still fits, until none does."""
    left, packs = np.sort(lengths), []
    while len(left):
        room, chosen = capacity, []
        while (place := int(np.searchsorted(left, room, side="right")) - 1) >= 0:
            chosen.append(int(left[place]))
            room -= chosen[-1]
            left = np.delete(left, place)
        packs.append(np.array(chosen))
    return packs


def next_fit(lengths: np.ndarray, capacity: int) -> PackCosts:
    """Examples as they come; a new pack when the next does not fit."""
    packs: list[list[int]] = [[]]
    room = capacity
    for length in lengths.tolist():
        if length > room:
            packs.append([])
            room = capacity
        packs[-1].append(length)
        room -= length
    return [np.array(each) for each in packs]


# ---- packs to ranks ----


def at_random(packs: PackCosts, ranks: int, a_step: int) -> Steps:
    """Shuffled packs, the next `a_step` in turn to the ranks: what a distributed sampler does."""
    costs = np.array([COST.of(each).sum() for each in packs])
    order = np.random.default_rng(1).permutation(len(costs))
    for start in range(0, len(order) - a_step + 1, a_step):
        yield costs[order[start : start + a_step]].reshape(-1, ranks).T.tolist()


def in_turn(packs: PackCosts, ranks: int, a_step: int) -> Steps:
    """Packs as they come, in turn to the ranks."""
    costs = np.array([COST.of(each).sum() for each in packs])
    for start in range(0, len(costs) - a_step + 1, a_step):
        yield costs[start : start + a_step].reshape(-1, ranks).T.tolist()


def token_balanced(lengths: np.ndarray, capacity: int, ranks: int, a_step: int) -> Steps:
    """LPT multipack: a step is as much of a random order as LPT fits into its packs, balanced by tokens."""
    order = np.random.default_rng(1).permutation(lengths)
    start = 0
    while start < len(order):
        few, many, best = 1, len(order) - start, None
        many = min(many, max(1, int(a_step * capacity / lengths.mean() * 3)))
        while few <= many:
            middle = (few + many) // 2
            room, packs = [capacity] * a_step, [[] for _ in range(a_step)]
            for length in sorted(order[start : start + middle].tolist(), reverse=True):
                chosen = room.index(max(room))
                room[chosen] -= length
                packs[chosen].append(length)
            if min(room) < 0:
                many = middle - 1
            else:
                few, best = middle + 1, (middle, packs)
        if best is None or start + best[0] >= len(order):
            return
        start += best[0]
        yield np.array([COST.of(each).sum() for each in best[1]]).reshape(-1, ranks).T.tolist()


def ours(schedule: Schedule, ranks: int) -> Steps:
    for k in range(schedule.num_items // schedule.items_per_step):
        costs = schedule.step(k).costs
        yield [[float(costs[micro[0]]) if micro else 0.0 for micro in rank] for rank in assign(costs, ranks).ranks]


def ours_laid_out_anew(schedule: Schedule, ranks: int) -> Steps:
    """With `deal_packs`: segments of a step's packs change places where ranks cannot share whole packs."""
    assert schedule.packing is not None
    lengths = np.asarray(schedule.packing.lengths)
    for k in range(schedule.num_items // schedule.items_per_step):
        items = schedule.step(k).items
        flat = np.concatenate([np.array(item) for item in items])
        costs = COST.of(lengths[flat])
        assignment = assign_packs(
            [len(item) for item in items], costs, lengths[flat], ranks, capacity=schedule.packing.capacity
        )
        yield [[float(costs[list(micro)].sum()) if micro else 0.0 for micro in rank] for rank in assignment.ranks]


def efficiency(steps: Steps) -> tuple[float, float]:
    """(free, lockstep) over all steps."""
    useful = free = lockstep = 0.0
    for step in steps:
        costs = np.array(step)  # [ranks, micro-batches]
        useful += costs.sum()
        free += len(costs) * costs.sum(axis=1).max()
        lockstep += len(costs) * costs.max(axis=0).sum()
    return useful / free, useful / lockstep


# ---- the tables ----


def schedule_of(lengths: np.ndarray, capacity: int, a_step: int, window: int | None = None) -> Schedule:
    packing = Packing(lengths, capacity)
    num_packs = len(pack(lengths, capacity))
    batch = round(a_step * len(lengths) / num_packs)
    schedule = Schedule(COST.of(lengths), seed=17, global_batch=batch, packing=packing, window=window)
    assert schedule.items_per_step == a_step
    return schedule


def compare(mix: Mix, count: int, ranks: int) -> None:
    lengths = mix.lengths(count)
    print(f"\n### {mix.name}: median {mix.median:g}, sigma {mix.sigma:g}, capacity {mix.capacity:,}")
    print(f"{count:,} examples, mean {lengths.mean():.0f}, longest {lengths.max():,}; {ranks} ranks\n")
    print("| | fill | 1 pack per rank: free | 4 packs per rank: free | lockstep | seconds |")
    print("|---|---|---|---|---|---|")

    def show(name: str, fill: float, one: Steps, four: Steps, seconds: float) -> None:
        free, both = efficiency(one)[0], efficiency(four)
        print(f"| {name} | {fill:.4f} | {free:.3f} | {both[0]:.3f} | {both[1]:.3f} | {seconds:.2f} |", flush=True)

    start = time.perf_counter()
    schedules = [schedule_of(lengths, mix.capacity, a_step) for a_step in (ranks, 4 * ranks)]
    seconds = (time.perf_counter() - start) / 2
    fill = lengths.sum() / (schedules[0].num_items * mix.capacity)
    show("**ours**", fill, ours(schedules[0], ranks), ours(schedules[1], ranks), seconds)
    loose = [schedule_of(lengths, mix.capacity, a_step, window=1) for a_step in (ranks, 4 * ranks)]
    show("ours without the window", fill, ours(loose[0], ranks), ours(loose[1], ranks), seconds)

    ways: list[tuple[str, Callable[[np.ndarray, int], PackCosts], Callable[[PackCosts, int, int], Steps]]] = [
        ("TRL `pack_dataset` (bfd), sampler", pack_trl, at_random),
        ("BFD per 1,000 rows, random order", by_rows(best_fit_decreasing), at_random),
        ("first-fit-decreasing per 1,000 rows, round-robin", by_rows(first_fit_decreasing), in_turn),
        ("greedy knapsack per 1,000 rows, random order", by_rows(greedy_knapsack), at_random),
        ("next-fit, round-robin", next_fit, in_turn),
    ]
    for name, make, hand_out in ways:
        start = time.perf_counter()
        try:
            packs = make(lengths, mix.capacity)
        except ImportError as error:
            print(f"| {name} | skipped: {error} | | | | |")
            continue
        seconds = time.perf_counter() - start
        fill = lengths.sum() / (len(packs) * mix.capacity)
        show(name, fill, hand_out(packs, ranks, ranks), hand_out(packs, ranks, 4 * ranks), seconds)
    balanced = [token_balanced(lengths, mix.capacity, ranks, a_step) for a_step in (ranks, 4 * ranks)]
    show("LPT multipack, balanced by tokens", float("nan"), balanced[0], balanced[1], float("nan"))


def other_ranks(mix: Mix, count: int) -> None:
    """The same steps of 32 packs on other numbers of ranks: what they train on does not change."""
    schedule = schedule_of(mix.lengths(count), mix.capacity, 32)
    cells = [efficiency(ours_laid_out_anew(schedule, ranks)) for ranks in (2, 3, 4, 6, 8, 12, 16)]
    print(f"| {mix.name} | " + " | ".join(f"{free:.3f} ({lockstep:.3f})" for free, lockstep in cells) + " |")


def sanity(mix: Mix, count: int) -> None:
    """How far steps differ in what they hold, ours beside purely random steps of the same packs."""
    lengths, cells = mix.lengths(count), []
    for window in (None, 1):
        schedule = schedule_of(lengths, mix.capacity, 32, window)
        steps = [
            np.concatenate([lengths[list(i)] for i in schedule.step(k).items])
            for k in range(schedule.steps_per_epoch - 1)
        ]
        means = np.array([np.average(np.log(step), weights=step) for step in steps])
        follow = np.corrcoef(means[:-1], means[1:])[0, 1]
        cells += [f"{np.mean([len(s) for s in steps]):.0f} ± {np.std([len(s) for s in steps]):.0f}"]
        cells += [f"{means.std():.3f}", f"{follow:+.2f}"]
    print(f"| {mix.name} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=50_000)
    parser.add_argument("--ranks", type=int, default=8)
    arguments = parser.parse_args()
    for mix in MIXES:
        compare(mix, arguments.examples, arguments.ranks)
    print("\n### The same steps (32 packs) on different numbers of ranks: free (lockstep)\n")
    print("| | 2 | 3 | 4 | 6 | 8 | 12 | 16 |\n|---|---|---|---|---|---|---|---|")
    for mix in MIXES:
        other_ranks(mix, arguments.examples)
    print("\n### Contents of steps of 32 packs\n")
    print(
        "| | ours: examples | log length | next | random: examples | log length | next |\n|---|---|---|---|---|---|---|"
    )
    for mix in MIXES:
        sanity(mix, arguments.examples)


if __name__ == "__main__":
    main()
