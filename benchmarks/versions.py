"""Two versions of this program train the same recipe: processor time of their steps, and their losses.

    python -m benchmarks.versions --against 88aa02d recipes/preference/tiny-llama-dpo.yaml --set data.train=FILE

COMMIT is checked out into a temporary git worktree. `finetune train` of both versions runs on one core, by turns, with the
same settings. What a step takes is the processor time from the end of one update to the end of the next: collation, forward
and backward passes, update, records. The median leaves out evaluations and checkpoints, which come between epochs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.golden import ROOT, git

# Python imports it in every process that it starts; both versions are measured by the same lines
CLOCK = """
import os, time
from torch.optim.optimizer import register_optimizer_step_post_hook

def _mark(*_):
    with open(os.environ["STEP_CLOCK"], "a") as file:
        file.write(f"{time.process_time()}\\n")

register_optimizer_step_post_hook(_mark)
"""
ALWAYS = "parallel.processes=1 parallel.deepspeed=none training.precision=fp32 tracking.log_every=1 tracking.wandb=off"


def train(checkout: Path, recipe: str, settings: list[str], folder: Path) -> tuple[list[float], list[float]]:
    """Seconds and loss of each step. folder: a new one."""
    folder.mkdir(parents=True)
    (folder / "sitecustomize.py").write_text(CLOCK)
    command = [sys.executable, "-m", "finetune", "train", str(Path(recipe).resolve()), "--run-dir", str(folder / "run")]
    command += [part for setting in [*ALWAYS.split(), *settings] for part in ("--set", setting)]
    env = {**os.environ, "PYTHONPATH": f"{checkout}:{folder}", "XDG_CACHE_HOME": str(folder / "cache")}
    env |= {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "STEP_CLOCK": str(folder / "clock"),
    }
    done = subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{checkout}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    clock = [float(line) for line in (folder / "clock").read_text().split()]
    rows = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    losses = [row["loss"] for row in rows if row["split"] == "train"]
    return [later - earlier for earlier, later in itertools.pairwise(clock)], losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--against", required=True, metavar="COMMIT")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    seconds: dict[str, list[list[float]]] = {"theirs": [], "ours": []}
    losses: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        tree = Path(temporary) / "checkout"
        git("add", "--quiet", "--detach", tree, asked.against)
        try:
            for number in range(asked.rounds):
                for name, checkout in (("theirs", tree), ("ours", ROOT)):
                    steps, losses[name] = train(
                        checkout, asked.recipe, asked.settings, Path(temporary) / f"{name}{number}"
                    )
                    seconds[name].append(steps)
        finally:
            git("remove", "--force", tree)
    pairs = zip(losses["theirs"], losses["ours"], strict=True)
    differ = max(abs(one - other) / abs(one) for one, other in pairs)
    medians = {name: [statistics.median(steps) for steps in rounds] for name, rounds in seconds.items()}
    theirs, ours = (statistics.median(medians[name]) for name in ("theirs", "ours"))
    print(f"| version | processor seconds of a step (median of {len(seconds['ours'][0])}), by round | |\n|---|---|---|")
    for name, ratio in ((asked.against, 1.0), ("this one", theirs / ours)):
        rounds = medians["ours" if name == "this one" else "theirs"]
        print(f"| {name} | {', '.join(f'{each:.3f}' for each in rounds)} | {ratio:.2f} |")
    print(f"\nLargest relative difference of the losses of {len(losses['ours'])} steps: {differ:.1e}")


if __name__ == "__main__":
    main()
