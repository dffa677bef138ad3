"""Runs the fuzz tests with new random inputs until the time is up: `python -m tests.fuzz [--minutes 10]`, part of `make soak`.

A finding ends it with hypothesis's report of the smallest input that shows it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROUND = 1_500  # inputs for each test in a round


def main() -> int:
    """0 if nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    ends = time.monotonic() + 60 * parser.parse_args().minutes
    seed = inputs = 0
    while time.monotonic() < ends:
        seed += 1
        command = [sys.executable, "-m", "pytest", "-q", "-x", str(Path(__file__).parent)]
        command.append(f"--hypothesis-seed={time.time_ns()}")
        done = subprocess.run(command, env={**os.environ, "FINETUNE_FUZZ_INPUTS": str(ROUND)}, check=False)
        if done.returncode:
            return done.returncode
        inputs += ROUND
        print(f"round {seed}: {inputs:,} inputs for each test, no finding", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
