"""Runs all benchmarks that this machine supports, one after the other: `make bench`."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SCRIPTS = (
    "packing_efficiency",
    "packing_speed",
    "preparation",
    "cost_model",
    "loop_overhead",
    "wandb_share",
    "large_reports",
    "trainer_sst2",
    "sft_packing",
    "rank_speed",
    "pipeline",
    "traffic",
    "tensor_parallel",
    "inference.slowed_rank",
    "inference.pulls",
    "inference.memory_growth",
    "inference.kills",
    "inference.generation",
    "inference.planted_objects",
)


def main() -> None:
    for name in SCRIPTS:
        print(f"\n== {name} ==", flush=True)
        sys.argv = [str(HERE / f"{name.replace('.', '/')}.py")]
        try:
            runpy.run_module(f"benchmarks.{name}", run_name="__main__")
        except SystemExit as ended:
            if ended.code:
                print(f"{name} ended with {ended.code}")


if __name__ == "__main__":
    main()
