"""A sweep with successive halving beside the full grid: how good its best trial is, and at how many steps.

    python -m benchmarks.sweep --seeds 1 2 3

Twelve trials of the digits recipe (six learning rates, two warmups), 8 epochs each. The sweep is killed (SIGKILL) twice, right
after a trial has started, and its command is given again each time. Then `--no-halving` trains the paused trials to their
ends, which is the full grid: a trial that was paused has the same numbers as one that was not.

The target is a best trial within 1 % of the full grid's at no more than half of its steps;
a seed that misses it gives exit code 1.

Steps are those that were computed, as the sessions of the runs say: those after a rung, until a trial had stopped, included.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "image_classification" / "resnet-digits.yaml"
GRID = ("training.learning_rate=1e-4,5e-4,2e-3,5e-3,2e-2,1e-1", "training.warmup=0.0,0.3")
TRIALS = 12
CLOSE, SHARE = 0.01, 0.5  # the target: within 1 % of the full grid's best, at no more than half of its steps
KILLED_AT = (4, 15)  # starts of trials, counted over all invocations


@dataclass(frozen=True)
class Result:
    """best: value of the best trial that finished. steps: computed over all trials. whole: of all schedules."""

    best: float
    steps: int
    whole: int


def command(seed: int, folder: Path) -> list[str]:
    words = [sys.executable, "-m", "finetune", "sweep", str(RECIPE), "--sweep-dir", str(folder)]
    for one in GRID:
        words += ["--grid", one]
    for one in (f"seed={seed}", "parallel.deepspeed=none", "tracking.wandb=off", "evaluation.samples=0"):
        words += ["--set", one]
    return words


def run(words: Sequence[str], kills: Sequence[int] = ()) -> None:
    """To the end, killed after so many starts of trials and given again."""
    starts, left = 0, list(kills)
    while True:
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print("   ", line, end="", flush=True)
                starts += " starts " in line or " goes on to" in line
                if left and starts >= left[0]:
                    left.pop(0)
                    process.send_signal(signal.SIGKILL)
                    print(f"    (killed after {starts} starts)", flush=True)
                    break
            else:
                if process.wait():
                    raise SystemExit(f"the sweep ended with code {process.returncode}")
                return


def measure(folder: Path) -> Result:
    best, steps, totals = 0.0, 0, []
    for file in sorted(folder.glob("trial-*/run.json")):
        facts = json.loads(file.read_text(encoding="utf-8"))
        steps += sum(one["step"] - one["start_step"] for one in facts["sessions"] if one.get("step"))
        totals.append(facts["facts"]["total_steps"])
        if facts["status"] == "done":
            best = max(best, facts["summary"]["best_value"])
    return Result(best, steps, TRIALS * totals[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--folder", type=Path, default=None, help="Keep the sweeps here, and go on with those in it.")
    options = parser.parse_args()
    root = options.folder or Path(tempfile.mkdtemp(prefix="sweep-"))
    rows = []
    for seed in options.seeds:
        folder = root / f"seed-{seed}"
        words = command(seed, folder)
        kept = folder / "halved.json"
        if kept.is_file():
            halved = Result(**json.loads(kept.read_text(encoding="utf-8")))
        else:
            run(words, KILLED_AT)
            halved = measure(folder)
            kept.write_text(json.dumps(vars(halved)), encoding="utf-8")
        print(f"seed {seed}: {halved}", flush=True)
        run([*words, "--no-halving"])
        rows.append((seed, halved, measure(folder)))
    print("| seed | best of the sweep | best of the full grid | steps of the sweep | of the full grid's | target |")
    print("|---|---|---|---|---|---|")
    missed = 0
    for seed, halved, full in rows:
        share = halved.steps / full.whole
        met = halved.best >= (1 - CLOSE) * full.best and share <= SHARE
        missed += not met
        steps = f"{halved.steps:,} of {full.whole:,} | {share:.2f}"
        print(f"| {seed} | {halved.best:.4f} | {full.best:.4f} | {steps} | {'met' if met else 'missed'} |")
    if missed:
        raise SystemExit(f"{missed} of {len(rows)} seeds missed the target")


if __name__ == "__main__":
    main()
