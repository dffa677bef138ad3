"""What a pull costs a rank: the tickets of a prediction's chunks in the group's store, and in the folder that replicas share,
by wall time and by processor time.

    python -m benchmarks.inference.pulls [--ranks 2] [--pulls 5000] [--chunk-seconds 0.1]

Every rank pulls as fast as it can. --chunk-seconds: a chunk takes so long, for the queue's share of the time.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from benchmarks.inference import pulls  # ranks import it by this name, not as __main__
from finetune.distributed.folder_store import FolderStore
from finetune.distributed.prebuild import choose_cache
from finetune.distributed.session import Session
from finetune.inference.prediction.board import TICKETS
from tests.ranks import Ranks


def pull(pulls: int) -> tuple[float, float, int]:
    """(wall seconds, processor seconds of this thread, sum of the numbers) of one rank."""
    session = Session.open(None, precision="fp32", cpu=True)
    session.wait()
    began, cpu = time.perf_counter(), time.thread_time()
    total = sum(session.store.count(TICKETS) for _ in range(pulls))
    taken = time.perf_counter() - began, time.thread_time() - cpu
    session.wait()
    session.close()
    return *taken, total


def pull_from_folder(pulls: int, folder: str) -> tuple[float, float, int]:
    """As `pull`, where each replica is a process group of its own."""
    store = FolderStore(Path(folder))
    began, cpu = time.perf_counter(), time.thread_time()
    total = sum((store.append(TICKETS, "0 0") or 0) + 1 for _ in range(pulls))
    return time.perf_counter() - began, time.thread_time() - cpu, total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--pulls", type=int, default=5_000)
    parser.add_argument("--chunk-seconds", type=float, default=0.1)
    asked = parser.parse_args()
    os.environ["TORCH_EXTENSIONS_DIR"] = str(choose_cache())
    with tempfile.TemporaryDirectory() as folder:
        pool = Ranks(Path(folder))
        try:
            ranks = pool.options(open_group=False)
            results = {
                "group's store": ranks.run(asked.ranks, pulls.pull, asked.pulls),
                "folder": ranks.run(asked.ranks, pulls.pull_from_folder, asked.pulls, folder),
            }
        finally:
            pool.close()
    for place, found in results.items():
        report(place, found, asked)


def report(place: str, results: list[tuple[float, float, int]], asked: argparse.Namespace) -> None:
    """One line for people. results: of each rank."""
    count = asked.ranks * asked.pulls
    assert sum(total for _, _, total in results) == count * (count + 1) // 2, "every number once"
    wall, cpu = (sum(result[index] for result in results) / count for index in (0, 1))
    print(
        f"{place}: {count:,} pulls on {asked.ranks} ranks, every number once: {wall * 1e6:.0f} us, {cpu * 1e6:.0f} us of "
        f"processor time; of chunks of {asked.chunk_seconds:g} s: {wall / asked.chunk_seconds:.3%}, "
        f"{cpu / asked.chunk_seconds:.3%}"
    )


if __name__ == "__main__":
    main()
