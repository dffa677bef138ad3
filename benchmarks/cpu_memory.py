"""How the memory of a rank on a CPU grows with new shapes of batches: as ranks are started, and by oneDNN's default.

    python -m benchmarks.cpu_memory [--steps 700]                    # results: README.md

A tiny BERT under ZeRO-2 on docstrings without padding, trained by `finetune train` twice. Shown are the memory of the rank's
process at logged steps, from metrics.jsonl, and the CPU seconds of all processes of each training.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
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
    "parallel": {"processes": 1, "deepspeed": "zero2"},
    "tracking": {"wandb": "off", "log_every": 50},
}


def train(folder: Path, steps: int, capacity: str) -> tuple[dict[int, float], float]:
    """({step: MiB}, CPU seconds) of one training."""
    recipe, run = folder / "memory.yaml", folder / f"run-{capacity}"
    schedule = {"steps": steps, "global_batch": 8, "learning_rate": 3e-4}
    recipe.write_text(json.dumps({**RECIPE, "training": schedule}))  # JSON is YAML
    began = _cpu_seconds()
    command = [sys.executable, "-m", "finetune", "train", str(recipe), "--run-dir", str(run)]
    subprocess.run(command, env={**os.environ, NAME: capacity}, check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    memory = {row["step"]: row["memory_bytes"] / 2**20 for row in rows if row["split"] == "train"}
    return memory, _cpu_seconds() - began


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=700)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as folder:
        default, ours = (train(Path(folder), steps, capacity) for capacity in (DEFAULT, OURS))
    print(f"| step | {NAME}={DEFAULT} (oneDNN's default) | {OURS} (as ranks are started) |\n|---|---|---|")
    for step in sorted(default[0])[:: max(1, len(default[0]) // 6)]:
        print(f"| {step} | {default[0][step]:.0f} MiB | {ours[0][step]:.0f} MiB |")
    print(f"| CPU seconds | {default[1]:.0f} | {ours[1]:.0f} |")


if __name__ == "__main__":
    main()
