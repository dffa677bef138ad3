"""Two ranks, one at half the speed, on a file that is partly sorted by length, in both orders; beside accelerate's
`split_between_processes`. And the queue's share of the time.

    python -m benchmarks.inference.slowed_rank

The ranks sleep in proportion to the letters of their chunks, so the ideal is known: all letters / the sum of both speeds.
`split_between_processes` gives each rank half of the rows, as one piece; its time is that of the slower half, computed.
"""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path

from accelerate import PartialState

from benchmarks.inference.adding_ranks import finish, start

ROWS = 20_000
SECONDS = (5e-5, 1e-4)  # per letter, by rank: a chunk takes 0.1 and 0.2 s, as one of MiniLM on a core does
TARGET = 1.08


def main() -> None:
    draw = random.Random(0)
    lengths = sorted(min(200, int(draw.lognormvariate(3, 0.8)) + 1) for _ in range(ROWS))
    for _ in range(ROWS // 4):  # partly sorted: a quarter of the rows changes places
        one, other = draw.randrange(ROWS), draw.randrange(ROWS)
        lengths[one], lengths[other] = lengths[other], lengths[one]
    ideal = sum(lengths) / sum(1 / seconds for seconds in SECONDS)
    print(f"{ROWS:,} rows, {sum(lengths):,} letters; the ideal is {ideal:.2f} s")
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for name, ordered in (("short first", lengths), ("long first", lengths[::-1])):
            data = Path(folder) / f"{name}.jsonl"
            with data.open("w") as file:
                for length in ordered:
                    file.write(json.dumps({"text": "a" * length}) + "\n")
            result = finish(start(data, Path(folder) / f"{name}-out.jsonl", SECONDS))
            ours = max(rank["ended"] for rank in result["ranks"]) - min(rank["started"] for rank in result["ranks"])
            halves = [split(ordered, rank) for rank in range(2)]
            theirs = max(sum(half) * seconds for half, seconds in zip(halves, SECONDS, strict=True))
            pulls = sum(rank["pulls"] for rank in result["ranks"])
            pulling = sum(rank["pull_cpu_seconds"] for rank in result["ranks"])
            worst = max(worst, ours / ideal)
            print(f"{name}: {ours:.2f} s ({ours / ideal:.3f} x the ideal)")
            print(f"  split_between_processes: {theirs:.2f} s ({theirs / ideal:.3f} x)")
            print(
                f"  {pulls} pulls of {1e6 * pulling / pulls:.0f} us of processor time, {pulling / 2 / ours:.3%} of the time",
                flush=True,
            )
    print(f"worst: {worst:.3f} x (target: {TARGET})")


def split(values: list[int], rank: int) -> list[int]:
    """What accelerate gives to a rank of two."""
    state = PartialState(cpu=True)
    before = state.num_processes, state.process_index
    state.num_processes, state.process_index = 2, rank
    state.distributed_type, kept = "MULTI_CPU", state.distributed_type
    try:
        with state.split_between_processes(values) as own:
            return list(own)
    finally:
        state.num_processes, state.process_index = before
        state.distributed_type = kept


if __name__ == "__main__":
    main()
