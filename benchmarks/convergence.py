"""Does packing change the final loss? Validation loss over seeds: unpacked in random order, padding-free, packed.

    python benchmarks/convergence.py --data PATH/TO/alpaca.jsonl [--seeds 3] [--epochs 2]      # results: README.md

A small Llama with random weights on instructions, one process per run, two runs at a time. Target: packed is within the spread
over seeds of the unpacked run in random order.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECIPE = """
name: convergence
task: causal_lm
seed: {seed}
model:
  source: llama
  init: config
  tokenizer: train:2048
  config: {{hidden_size: 128, intermediate_size: 384, num_hidden_layers: 3, num_attention_heads: 4,
    num_key_value_heads: 2, max_position_embeddings: 512}}
data: {{train: {data}, validation: {validation}, {mode}}}
options: {{max_length: 512}}
training: {{epochs: {epochs}, global_batch: 16, learning_rate: 2.0e-3, warmup: 0.1, schedule: cosine}}
parallel: {{processes: 1, deepspeed: none}}
evaluation: {{samples: 0}}
tracking: {{wandb: "off"}}
"""
MODES = {
    "unpacked, random order": "packing: none, balance_window: 1",
    "unpacked, by length (window 4)": "packing: none, balance_window: 4",
    "padding-free": "packing: padding_free",
    "packed (capacity 1,024)": "packing: packed, capacity: 1024",
}


def run(folder: Path, data: Path, mode: str, seed: int, epochs: int) -> float:
    """The validation loss at the end. The held-out rows are the same for every seed."""
    name = f"{list(MODES).index(mode)}-{seed}"
    rows = data.read_text(encoding="utf-8").splitlines()
    (folder / "train.jsonl").write_text(
        "\n".join(row for index, row in enumerate(rows) if index % 10), encoding="utf-8"
    )
    (folder / "validation.jsonl").write_text("\n".join(rows[::10]), encoding="utf-8")
    recipe = folder / f"{name}.yaml"
    settings = {"data": folder / "train.jsonl", "validation": folder / "validation.jsonl", "mode": MODES[mode]}
    recipe.write_text(RECIPE.format(seed=seed, epochs=epochs, **settings), encoding="utf-8")
    command = [sys.executable, "-m", "finetune", "train", str(recipe), "--run-dir", str(folder / name)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
    lines = (folder / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row["loss"] for row in map(json.loads, lines) if row["split"] == "validation"][-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data/alpaca/alpaca_en_demo.jsonl")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--only", choices=list(MODES), action="append", help="one of the ways; may be given again")
    options = parser.parse_args()
    modes = options.only or list(MODES)
    if not options.data.is_file():
        raise SystemExit(f"no instructions at {options.data}: give --data")
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(2) as pool:
        jobs = {
            (mode, seed): pool.submit(run, Path(name), options.data, mode, seed, options.epochs)
            for seed in range(1, options.seeds + 1)
            for mode in modes
        }
        print("| order and packing | validation loss by seed | mean | standard deviation |\n|---|---|---|---|")
        for mode in modes:
            losses = [jobs[mode, seed].result() for seed in range(1, options.seeds + 1)]
            shown = ", ".join(f"{loss:.4f}" for loss in losses)
            spread = statistics.stdev(losses) if len(losses) > 1 else 0.0
            print(f"| {mode} | {shown} | {statistics.mean(losses):.4f} | {spread:.4f} |", flush=True)


if __name__ == "__main__":
    main()
