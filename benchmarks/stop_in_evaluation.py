"""From SIGTERM to the saved checkpoint, where the signal comes during an evaluation that takes long.

    python -m benchmarks.stop_in_evaluation [--layouts none,zero2,zero3] [--ranks 2] [--after 3] [--checkout FOLDER]

A Llama of 4 layers writes replies of 384 tokens to the validation rows after its fourth step: seconds per batch, far more
for all. SIGTERM goes to `finetune train` some seconds after that evaluation has begun, as a cluster sends it. The figure is
the time from there to the checkpoint of step 4, and to the end of the last process. --checkout: another version of the
program, for comparison.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from finetune.distributed.prebuild import choose_cache

ROOT = Path(__file__).resolve().parent.parent
STEPS, EVALUATED = 8, 4
LIMIT_SECONDS = 600.0
TRANSFORMER = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip


def write_recipe(folder: Path, rows: int, ranks: int, layout: str) -> Path:
    """The data, and a recipe whose evaluation generates text."""
    draw = random.Random(1)
    words = [f"{first}{second}" for first in "bdfgklmnprst" for second in ("a", "e", "i", "o", "u")]
    for name, count in (("train", 64), ("validation", rows)):
        lines = [
            {"instruction": " ".join(draw.choices(words, k=8)), "output": " ".join(draw.choices(words, k=8))}
            for _ in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    recipe = {
        "name": "stopped",
        "task": "causal_lm",
        "model": {"source": "llama", "init": "config", "tokenizer": "train:320", "config": TRANSFORMER},
        "data": {"train": "train.jsonl", "validation": "validation.jsonl"},
        "options": {"reply_length": 384},
        "training": {"global_batch": 8, "steps": STEPS, "learning_rate": 1e-3, "precision": "fp32"},
        "parallel": {"processes": ranks, "deepspeed": layout},
        "evaluation": {"every": EVALUATED, "metrics": ["rouge_l"], "best": "loss", "samples": 0},
        "checkpoint": {"every": 100},
        "tracking": {"wandb": "off", "log_every": 1},
    }
    path = folder / "stopped.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def measure(layout: str, args: argparse.Namespace) -> str:
    """A row of the table."""
    with tempfile.TemporaryDirectory(prefix="stop-in-evaluation-") as name:
        folder = Path(name)
        recipe, run = write_recipe(folder, args.rows, args.ranks, layout), folder / "run"
        environment = {
            **os.environ,
            "PYTHONPATH": str(args.checkout or ROOT),
            "CUDA_VISIBLE_DEVICES": "",
            "TORCH_EXTENSIONS_DIR": str(choose_cache()),
            "XDG_CACHE_HOME": str(folder / "cache"),
        }
        command = [sys.executable, "-m", "finetune", "train", str(recipe), "--run-dir", str(run)]
        with (folder / "output").open("w") as output:
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, cwd=folder)
        try:
            wait_for(run / "predictions", f"*-step-{EVALUATED:08d}.jsonl*", process, folder / "output")
            time.sleep(args.after)
            if (run / "predictions" / f"validation-step-{EVALUATED:08d}.jsonl").exists():
                raise SystemExit("the evaluation ended before the signal: give it more --rows")
            process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            wait_for(run / "checkpoints", f"step-{EVALUATED:08d}/manifest.json", None, folder / "output")
            saved = time.monotonic() - began
            process.wait(LIMIT_SECONDS)
            ended = time.monotonic() - began
        finally:
            process.kill()
        if args.verbose:
            print((folder / "output").read_text(encoding="utf-8"))
        return f"| {layout} | {saved:.1f} s | {ended:.1f} s | {process.returncode} |"


def wait_for(folder: Path, pattern: str, process: subprocess.Popen[bytes] | None, output: Path) -> None:
    """Until a file is there. Raises: SystemExit if `process` ends before, or it takes too long."""
    until = time.monotonic() + LIMIT_SECONDS
    while not any(folder.glob(pattern)):
        if time.monotonic() > until or (process is not None and process.poll() is not None):
            raise SystemExit(f"no {pattern} came; the output:\n{output.read_text(encoding='utf-8')}")
        time.sleep(0.02)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layouts", default="none,zero2,zero3", help="values of parallel.deepspeed")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rows", type=int, default=4096, help="of the validation split")
    parser.add_argument("--after", type=float, default=3.0, help="seconds from the evaluation's begin to the signal")
    parser.add_argument("--checkout", type=Path, default=None, help="a checkout of the program to be measured")
    parser.add_argument("--verbose", action="store_true", help="print what the training printed")
    args = parser.parse_args()
    print("| layout | to the checkpoint | to the end | exit code |\n|---|---|---|---|", flush=True)
    for layout in args.layouts.split(","):
        print(measure(layout, args), flush=True)


if __name__ == "__main__":
    main()
