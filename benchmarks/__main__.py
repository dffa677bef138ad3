"""Runs all benchmarks that this machine supports, one after the other, each in a process of its own: `make bench`.

    python -m benchmarks [--small] [NAME ...]

--small: a few rows and steps of each, which shows in minutes that all of them begin and end; their figures say nothing.
The exit code is 1 if one of them failed; the others run all the same.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence

SCRIPTS: dict[str, str] = {  # name -> arguments with --small
    "packing_efficiency": "--examples 2000 --ranks 2",
    "packing_speed": "",
    "preparation": "--rows 2000 --one 500",
    "pictures_path": "--batch 16 --batches 2",
    "cost_model": "--packs 4",
    "loop_overhead": "--blocks 2 --steps 2",
    "cpu_memory": "--steps 60",
    "wandb_share": "--blocks 2 --steps 2",
    "large_reports": "",
    "trainer_sst2": "--rounds 1",
    "sft_packing": "--rounds 1",
    "rank_speed": "--rounds 1 --steps 2 --case Llama",
    "pipeline": "--steps 2",
    "traffic": "--ranks 2",
    "tensor_parallel": "",
    "inference.slowed_rank": "",
    "inference.pulls": "--pulls 200",
    "inference.memory_growth": "--rows 20000",
    "inference.kills": "--kills 1 --memory 1 --rows 500",
    "inference.generation": "--rounds 1",
    "inference.planted_objects": "--scenes 1",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if all of them ended without an error."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Run all benchmarks, or those named.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(SCRIPTS)}")
    parser.add_argument("--small", action="store_true", help="a few rows and steps of each")
    asked = parser.parse_args(arguments)
    if unknown := [name for name in asked.names if name not in SCRIPTS]:
        parser.error(f"there is no {unknown[0]}")
    failed = []
    for name in asked.names or SCRIPTS:
        print(f"\n== {name} ==", flush=True)
        began = time.monotonic()
        more = SCRIPTS[name].split() if asked.small else []
        code = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *more], check=False).returncode
        print(f"{name}: {time.monotonic() - began:.0f} s" + (f", ended with {code}" if code else ""), flush=True)
        if code:
            failed.append(name)
    print(f"\nfailed: {', '.join(failed)}" if failed else "\nall ended without an error")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
