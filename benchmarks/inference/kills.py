"""Kills at random moments while the number of ranks changes: each row once, and the bytes of an undisturbed output.

    python -m benchmarks.inference.kills [--kills 40] [--memory 10] [--rows 6000] [--seed 0] [--seconds 3600]

Each start has 1 to 3 ranks of `finetune predict` with a tiny model. One of them, all, or the process that reads and writes
is killed, while it starts or within 1.2 s of its first chunk; then the same output goes on. An output that was finished is
compared, and begun again. --memory: kills while memory also runs out in 3 % of the batches: labels are compared, and
scores within 1e-5.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from finetune.distributed.prebuild import choose_cache
from tests.kills import KilledPredictions, make_place
from tests.ranks import Ranks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--memory", type=int, default=10)
    parser.add_argument("--rows", type=int, default=6_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=3600.0, help="no kill begins later")
    asked = parser.parse_args()
    os.environ["TORCH_EXTENSIONS_DIR"] = str(choose_cache())
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        (folder / "ranks").mkdir()
        pool = Ranks(folder / "ranks")
        try:
            killed = KilledPredictions(pool, make_place(folder, asked.rows))
            until = began + asked.seconds
            if asked.memory:
                done = killed.kill(asked.memory, asked.seed + 1, memory_runs_out=True, until=until)
                print(f"memory runs out: {done.describe()}: rows and labels the same, scores within {done.worst:.1e}")
            done = killed.kill(asked.kills, asked.seed, until=until)
            print(f"{done.describe()}: each of {killed.rows:,} rows once, the same bytes")
        finally:
            pool.close()
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
