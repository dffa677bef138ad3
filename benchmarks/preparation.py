"""How fast data is prepared, beside `datasets.map`; what a second start costs; and how much memory it takes.

    python -m benchmarks.preparation --rows 1000000

Alpaca-like rows are made on the fly, and a small fast tokenizer. Both sides read the same file, render the same chat template,
tokenize and mask with the same function, with TOKENIZERS_PARALLELISM=false, each in a process of its own and with an empty
cache. Ours also counts, hashes and publishes. The second start looks up what a rank needs and makes the schedule.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def write_rows(path: Path, count: int) -> None:
    """Alpaca-like: an instruction, an input in a third of the rows, an output of 20 to 120 words."""
    draw = random.Random(count)
    letters = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(5_000)]
    with path.open("w", encoding="utf-8") as file:
        for index in range(count):
            row = {
                "instruction": " ".join(draw.choices(letters, k=draw.randint(6, 20))) + ".",
                "input": " ".join(draw.choices(letters, k=12)) if index % 3 == 0 else "",
                "output": " ".join(draw.choices(letters, k=draw.randint(20, 120))) + ".",
            }
            file.write(json.dumps(row) + "\n")


def write_recipe(folder: Path, rows: Path) -> Path:
    values = {
        "name": "preparation",
        "task": "causal_lm",
        "model": {
            "source": "llama",
            "init": "config",
            "tokenizer": str(folder / "tokenizer"),
            "config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
        },
        "data": {"train": str(rows), "validation_fraction": 0.01},
        "options": {"max_length": 1024},
    }
    path = folder / f"{rows.stem}.yaml"
    path.write_text(json.dumps(values))
    return path


def make_tokenizer(folder: Path, rows: Path) -> None:
    """A byte-level BPE of 8,192 tokens with ChatML, as `tokenizer: train:8192` makes it."""
    sys.path.insert(0, str(ROOT))
    from finetune.models.tokenizer import _train, _wrap

    with rows.open() as file:
        texts = [json.loads(line)["output"] for _, line in zip(range(5_000), file, strict=False)]
    _wrap(_train(8_192, texts)).save_pretrained(folder / "tokenizer")


OURS = """
import os, sys, time
sys.path.insert(0, {root!r})
from finetune.app.opening import open_recipe
from finetune.app.preparation.request import Request
from finetune.app.workers.preparing import prepare
from finetune.data.prepare.progress import Stage
request = Request.of(open_recipe({recipe!r}).recipe)
names, began, cpu = request.names(), time.perf_counter(), os.times()
prepare(request, names, Stage(workers={workers}))
print("seconds", time.perf_counter() - began)
times = os.times()
print("own", times.user + times.system - cpu.user - cpu.system)
print("workers", times.children_user + times.children_system)
"""

THEIRS = """
import os, sys, time
sys.path.insert(0, {root!r})
import datasets
from finetune.app.machine import plan_alone
from finetune.app.opening import open_recipe
from finetune.tasks import load_task
from finetune.tasks.facts import Facts
datasets.disable_progress_bars()
recipe = open_recipe({recipe!r}).recipe
task = load_task(recipe.task)
artifacts = task.prepare(plan_alone(recipe), {{}}, Facts())

def encode(batch):
    rows = [dict(zip(batch, values)) for values in zip(*batch.values())]
    found = task.encode(artifacts, rows, with_targets=True)
    return {{key: [one[key] for one in found] for key in found[0] if key != "notices"}}

began, cpu = time.perf_counter(), os.times()
data = datasets.load_dataset("json", data_files={rows!r}, split="train", cache_dir={cache!r})
data = data.map(encode, batched=True, batch_size=256, num_proc={workers}, remove_columns=data.column_names)
assert len(data) == {count}
print("seconds", time.perf_counter() - began)
times = os.times()
print("own", times.user + times.system - cpu.user - cpu.system)
print("workers", times.children_user + times.children_system)
"""

SECOND = """
import sys, time
sys.path.insert(0, {root!r})
from finetune.app.opening import open_recipe
from finetune.app.preparation.entry import find_prepared
from finetune.app.preparation.request import Request
recipe = open_recipe({recipe!r}).recipe
Request.of(recipe).names()
began = time.perf_counter()
assert find_prepared(Request.of(recipe).names()) is not None
print("supervisor", time.perf_counter() - began)
from finetune.app.machine import plan_alone
from finetune.app.workers.preparing import ready
from finetune.models.config import load_config
from finetune.planning.shape import cost_model
from finetune.training.microbatch_planner import MicroBatchPlanner
plan = plan_alone(recipe)
cost = cost_model(load_config(recipe.model))
ready(recipe)
began = time.perf_counter()
data = ready(recipe)
print("mapped", time.perf_counter() - began)
began = time.perf_counter()
planner = MicroBatchPlanner(data.datasets["train"].costs, cost, ranks=2, micro_batch=8,
    packing=plan.training.packing, capacity=data.artifacts.settings["capacity"])
schedule = planner.schedule(recipe, plan.training.balance_window)
planner.assign(schedule.step(0), None)
data.datasets["train"][0]
print("schedule", time.perf_counter() - began)
"""


def run(code: str, cache: Path, **values: object) -> tuple[dict[str, float], dict[int, float]]:
    """(what the code printed, peak MiB of each of its processes: private memory, without mapped files)."""
    import psutil

    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(cache),
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", code.format(root=str(ROOT), cache=str(cache), **values)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    peaks: dict[int, float] = {}
    while process.poll() is None:
        for one in _family(process.pid):
            try:
                memory = one.memory_info()
                private = (memory.rss - memory.shared) / 2**20
                peaks[one.pid] = max(peaks.get(one.pid, 0.0), private)
            except psutil.Error:
                continue
        time.sleep(0.25)
    assert process.returncode == 0 and process.stdout is not None
    lines = [line.split() for line in process.stdout.read().splitlines()]
    return {line[0]: float(line[1]) for line in lines if len(line) == 2}, peaks


def per_row(took: dict[str, float], rows: int) -> str:
    """CPU microseconds: what cannot be divided among workers, and what is."""
    return f"{1e6 * took['own'] / rows:.0f} + {1e6 * took['workers'] / rows:.0f} us (this process + workers)"


def _family(pid: int) -> list:
    import psutil

    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--one", type=int, default=0, help="rows for the run of one worker; 0: as many")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="preparation-") as name:
        folder = Path(name)
        large, small = folder / "large.jsonl", folder / "small.jsonl"
        write_rows(large, options.rows)
        write_rows(small, min(10_000, options.rows))
        make_tokenizer(folder, small)
        recipes = {path: str(write_recipe(folder, path)) for path in (large, small)}
        speeds: dict[str, float] = {}
        alone = folder / "alone.jsonl"
        write_rows(alone, options.one or options.rows)
        recipes[alone] = str(write_recipe(folder, alone))

        took, _ = run(OURS, folder / "one", recipe=recipes[alone], workers=1)
        speeds["one worker"] = (options.one or options.rows) / took["seconds"]
        cpu = {"one worker": per_row(took, options.one or options.rows)}
        took, peaks = run(OURS, folder / "ours", recipe=recipes[large], workers=options.workers)
        speeds[f"{options.workers} workers"] = options.rows / took["seconds"]
        cpu[f"{options.workers} workers"] = per_row(took, options.rows)
        theirs, _ = run(
            THEIRS,
            folder / "theirs",
            recipe=recipes[large],
            rows=str(large),
            count=options.rows,
            workers=options.workers,
        )
        speeds[f"datasets.map, num_proc={options.workers}"] = options.rows / theirs["seconds"]
        cpu[f"datasets.map, num_proc={options.workers}"] = per_row(theirs, options.rows)
        _, small_peaks = run(OURS, folder / "ours", recipe=recipes[small], workers=options.workers)

        print(f"{options.rows:,} rows, {large.stat().st_size / 2**20:,.0f} MiB")
        first = speeds["one worker"]
        for who, speed in speeds.items():
            print(f"{who:28} {speed:8,.0f} rows/s   {speed / first:.2f} x one worker   CPU per row {cpu[who]}")
        ours = speeds[f"{options.workers} workers"]
        print(f"ours / datasets.map          {ours / speeds[f'datasets.map, num_proc={options.workers}']:.2f}")
        large_peak, small_peak = max(peaks.values()), max(small_peaks.values())
        print(f"peak private memory of a process: {large_peak:,.0f} MiB; with 10,000 rows {small_peak:,.0f} MiB")
        for count, path in ((min(10_000, options.rows), small), (options.rows, large)):
            took, _ = run(SECOND, folder / "ours", recipe=recipes[path])
            print(
                f"second start with {count:9,} rows: found in {1000 * took['supervisor']:.0f} ms, "
                f"mapped in {1000 * took['mapped']:.0f} ms, schedule and first example in {1000 * took['schedule']:.0f} ms"
            )


if __name__ == "__main__":
    main()
