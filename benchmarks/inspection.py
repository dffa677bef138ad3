"""Seconds of `finetune inspect` on made-up data: `python -m benchmarks.inspection [--rows 100000] [--task causal_lm]`.

Prints wall and CPU seconds of a first run, which encodes the data, and of a second one, which finds it in the cache.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

WORDS = 20_000  # distinct ones, drawn by Zipf's law as in texts
TRANSFORMER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--task", choices=("causal_lm", "text_classification"), default="causal_lm")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "train.jsonl", arguments.rows, arguments.task, seed=1)
        write_rows(folder / "validation.jsonl", arguments.rows // 50, arguments.task, seed=2)
        size = (folder / "train.jsonl").stat().st_size / 1e6
        print(f"{arguments.task}: {arguments.rows:,} rows of train, {size:.0f} MB; {os.cpu_count()} CPUs")
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe(arguments.task)))
        for run in ("first run", "second run"):
            wall, cpu, peak = inspect(folder)
            print(f"{run:10}  {wall:6.1f} s wall  {cpu:6.1f} s CPU  {peak:,.0f} MB at most")


def recipe(task: str) -> dict[str, object]:
    """A recipe whose tokenizer is trained on the data once, before the measured runs share it."""
    if task == "causal_lm":
        model = {"source": "llama", "init": "config", "tokenizer": "train:8000"}
        model["config"] = {**TRANSFORMER, "num_key_value_heads": 2, "max_position_embeddings": 1024}  # type: ignore[assignment]
    else:
        model = {"source": "bert", "init": "config", "tokenizer": "train:8000", "config": TRANSFORMER}  # type: ignore[dict-item]
    return {
        "name": "inspected",
        "task": task,
        "model": model,
        "data": {"train": "train.jsonl", "validation": "validation.jsonl"},
        "training": {"precision": "fp32"},
    }


def write_rows(path: Path, count: int, task: str, seed: int) -> None:
    """Texts of the lengths of Alpaca: an instruction of about 12 words and a reply of about 45; 1% of the rows are copies."""
    draw = random.Random(seed)
    words = [
        f"w{index}" if index > 400 else "abcdefghijklmnopqrst"[index % 20] * (1 + index // 20) for index in range(WORDS)
    ]
    weights = [1 / (rank + 3) for rank in range(WORDS)]
    drawn = iter(draw.choices(words, weights, k=count * 60))

    def text(length: int) -> str:
        return " ".join(next(drawn) for _ in range(length))

    with path.open("w", encoding="utf-8") as file:
        line = ""
        for index in range(count):
            if index % 100 != 99:
                asked, reply = text(draw.randrange(5, 20)), text(draw.randrange(5, 80))
                row = {"instruction": asked, "output": reply}
                if task == "text_classification":
                    row = {"text": f"{asked} {reply}", "label": f"class {draw.randrange(5)}"}
                line = json.dumps(row) + "\n"
            file.write(line)


def inspect(folder: Path) -> tuple[float, float, float]:
    """(wall seconds, CPU seconds of all its processes, megabytes) of one run, with the report written as a page."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "finetune", "inspect", "recipe.yaml", "--html", "report.html"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": str(Path.cwd())}
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - started, cpu, after.ru_maxrss / 1024


if __name__ == "__main__":
    main()
