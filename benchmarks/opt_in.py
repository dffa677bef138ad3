"""What is off by default because the numbers are not exactly the same: its cost in exactness, and what it takes.

    python -m benchmarks.opt_in [--steps 100]

A vision transformer on scikit-learn's digits (recipes/image_classification/vit-digits.yaml), one process on the CPU: as the
recipe says, then with each option. Differences are relative, of the training loss of single steps. A training amplifies every
rounding; two ranks, whose sums are rounded in another order and nothing else, are the measure of it. On tiny models on a CPU
nothing is faster; what is shown is exactness and bytes.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from finetune.recipe.optimizers import OPTIMIZERS

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "image_classification" / "vit-digits.yaml"
COMMON = ("parallel.deepspeed=none", "tracking.log_every=1", "tracking.wandb=off")
OPTIONS = {
    "none": ("parallel.processes=1",),
    "none, on two ranks: rounding alone": ("parallel.processes=2",),
    "model.compile: layers": ("parallel.processes=1", "model.compile=layers"),
    "training.optimizer: adamw_8bit": ("parallel.processes=1", "training.optimizer=adamw_8bit"),
}


def train(folder: Path, sets: tuple[str, ...]) -> tuple[list[float], float, list[str]]:
    """Losses of the steps, the last validation loss, and what was said about compiling."""
    arguments = [part for one in (*COMMON, *sets) for part in ("--set", one)]
    command = [sys.executable, "-m", "finetune", "train", str(RECIPE), "--run-dir", str(folder), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rows: list[dict[str, Any]] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["split"] == "train"]
    last = [row["loss"] for row in rows if row["split"] == "validation"][-1]
    return losses, last, re.findall(r"model\.compile: compiled .*", done.stdout)


def describe(name: str, losses: list[float], exact: list[float]) -> str:
    each = [abs(ours - theirs) / theirs for ours, theirs in zip(losses, exact, strict=True)]
    optimizer = "adamw_8bit" if "8bit" in name else "adamw"
    cells = (max(each[:10]), max(each), f"{OPTIMIZERS[optimizer].state_bytes:.2f}")
    return f"| {name} | {cells[0]:.1e} | {cells[1]:.1e} | {cells[2]} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    steps = parser.parse_args().steps
    print(
        "| option | largest difference, steps 1 to 10 | of all steps | bytes of optimizer state per parameter | validation |"
    )
    print("|---|---|---|---|---|")
    exact: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for index, (name, sets) in enumerate(OPTIONS.items()):
            losses, last, told = train(Path(folder) / str(index), (f"training.steps={steps}", *sets))
            exact = exact or losses
            print(f"{describe(name, losses, exact)} {last:.4f} |", flush=True)
            for line in told:
                print(f"    {line}")


if __name__ == "__main__":
    main()
