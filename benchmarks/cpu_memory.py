"""How the memory of a rank on a CPU grows with new shapes of batches: as ranks are started, and by oneDNN's default.

    python -m benchmarks.cpu_memory [--steps 700]                    # results: README.md
    python -m benchmarks.cpu_memory --steps 60 --recipe recipes/quickstart.yaml --variable MALLOC_MMAP_THRESHOLD_=1048576

A tiny BERT under ZeRO-2 on docstrings without padding, or a recipe on one rank, trained by `finetune train` twice. Shown are
the memory of the rank's process at logged steps, from metrics.jsonl, and the CPU seconds of all processes of each training.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from finetune.distributed.launch import ONEDNN_CODE

NAME, OURS = ONEDNN_CODE
DEFAULT = "1024"  # oneDNN's
SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
RECIPE = {
    "name": "memory",
    "task": "text_classification",
    "model": {"source": "bert", "init": "config", "tokenizer": "train:1000", "config": SHAPE},
    "data": {
        "train": {"source": "builtin:docstrings"},
        "validation": {"source": "builtin:docstrings", "split": "validation", "limit": 50},
        "columns": {"text": "text", "label": "label"},
    },
    "options": {"max_length": 256},
    "training": {"steps": 700, "global_batch": 8, "learning_rate": 3e-4},
    "parallel": {"processes": 1, "deepspeed": "zero2"},
}


def train(run: Path, recipe: Path, sets: Sequence[str], variables: Mapping[str, str]) -> tuple[dict[int, float], float]:
    """({step: MiB}, CPU seconds) of one training. variables: of its environment."""
    began = _cpu_seconds()
    command = [sys.executable, "-m", "finetune", "train", str(recipe), "--run-dir", str(run)]
    command += [word for one in sets for word in ("--set", one)]
    subprocess.run(command, env={**os.environ, **variables}, check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    memory = {row["step"]: row["memory_bytes"] / 2**20 for row in rows if row["split"] == "train"}
    return memory, _cpu_seconds() - began


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--recipe", type=Path, help="in place of the tiny BERT")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe", dest="sets")
    parser.add_argument("--variable", metavar="NAME=VALUE", help="compare with this one, in place of oneDNN's")
    asked = parser.parse_args()
    name, _, value = (asked.variable or f"{NAME}={OURS}").partition("=")
    before: dict[str, str] = {} if asked.variable else {NAME: DEFAULT}
    log_every = max(1, asked.steps // 14)
    sets = [
        f"training.steps={asked.steps}",
        "parallel.processes=1",
        "tracking.wandb=off",
        f"tracking.log_every={log_every}",
    ]
    with tempfile.TemporaryDirectory() as folder:
        tiny = Path(folder, "memory.yaml")
        tiny.write_text(json.dumps(RECIPE))  # JSON is YAML
        recipe = asked.recipe or tiny
        default, ours = (
            train(Path(folder, run), recipe, [*sets, *asked.sets], variables)
            for run, variables in (("before", before), ("after", {name: value}))
        )
    print(
        f"| step | {name}={DEFAULT} (oneDNN's default) | {value} |"
        if before
        else f"| step | {name} not set | {value} |"
    )
    print("|---|---|---|")
    for step in sorted(default[0])[:: max(1, len(default[0]) // 6)]:
        print(f"| {step} | {default[0][step]:.0f} MiB | {ours[0][step]:.0f} MiB |")
    print(f"| CPU seconds | {default[1]:.0f} | {ours[1]:.0f} |")


if __name__ == "__main__":
    main()
