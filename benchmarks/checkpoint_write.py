"""Seconds to write and hash one rank's state, in one file by one thread and in parts by several: `--gb 4`.

python benchmarks/checkpoint_write.py [--gb 2] [--folder /tmp]
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

import torch

from finetune.distributed.sharded_state import Shard
from finetune.training.checkpoint_writer import write_parts
from finetune.training.staging import divide

ROUNDS = 3


def main() -> None:
    """Prints both sides, in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=2.0)
    parser.add_argument("--folder", type=Path, default=None)
    arguments = parser.parse_args()
    count = int(arguments.gb * 1e9 / 4 / 8)
    shards = [Shard(f"w{index}", 0, (count,), torch.randn(count)) for index in range(8)]
    cores = len(os.sched_getaffinity(0))
    sides = {
        "one file, one thread": (divide(shards, part_bytes=1 << 50), 1),
        f"parts, {min(8, cores)} threads": (divide(shards), min(8, cores)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, (parts, threads) in sides.items():
            folder = Path(tempfile.mkdtemp(dir=arguments.folder))
            began = time.perf_counter()
            write_parts(folder / "state-00000-of-00001.safetensors", parts, {}, threads)
            seconds[name].append(time.perf_counter() - began)
            shutil.rmtree(folder)
    for name, all_of_them in seconds.items():
        best = min(all_of_them)
        print(f"{name:24} {best:6.2f} s, {arguments.gb / best:.2f} GB/s, {len(sides[name][0])} files")


if __name__ == "__main__":
    main()
