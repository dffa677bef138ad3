"""A ResNet in a pipeline of two ranks compared to one process: memory and bytes sent per rank, idle time, seconds per step.

    python benchmarks/pipeline.py [--steps 8]      # results: README.md

The same micro-batches on both sides, each rank pinned to its own core. The minimum idle share is (p - 1) / (m + p - 1) for
p stages and m micro-batches (GPipe, 2019, section 2.3); the measured one is the mean fraction of a step in which a rank waits
for its neighbor, including transfers and unequal stages.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECIPE = """
name: pipeline
task: image_classification
model:
  source: resnet
  init: config
  config: {{embedding_size: 32, hidden_sizes: [64, 128, 256], depths: [2, 2, 2], layer_type: basic}}
data: {{train: "builtin:digits"}}
options: {{image_size: 64}}
training: {{steps: 1000, global_batch: 64, learning_rate: 1.0e-3}}
parallel: {{deepspeed: none, pipeline: {stages}, micro_batch: {micro_batch}}}
tracking: {{wandb: "off"}}
"""
LAYOUTS = [(1, 8), (2, 64), (2, 16), (2, 8), (2, 4)]  # (stages, micro-batch)
WARM = 2


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
    from finetune.training.stop import StopRequest

    recipe = open_recipe(str(folder / "pipeline.yaml")).recipe
    session = open_session(plan := plan_here(recipe, int(os.environ["WORLD_SIZE"])))
    context = set_up(session, plan, ready(recipe), lambda text: None)
    output_dirs = OutputDirs(folder / "checkpoints", folder / "predictions")
    loop = make_loop(context, output_dirs, SilentListener(), StopRequest())
    p2p = getattr(context.engine, "p2p", None)
    trained, seconds, idle, losses, sent = loop.steps(), [], [], [], 0
    for number in range(WARM + steps):
        session.wait()
        if number == WARM and p2p is not None:
            sent = p2p.sent_bytes
        began = time.perf_counter()
        result = next(trained)
        seconds.append(time.perf_counter() - began)
        idle.append(result.waiting_seconds / seconds[-1])
        losses.append(result.loss)
    weights = sum(p.nbytes for p in context.engine.module.parameters() if not p.is_meta)
    state = [value for one in context.engine.inner_optimizer.state.values() for value in one.values()]
    told = {
        "seconds": statistics.median(seconds[WARM:]),
        "idle": statistics.median(idle[WARM:]),
        "sent": (p2p.sent_bytes - sent) / steps if p2p is not None else 0,
        "weights": weights,
        "optimizer": sum(value.nbytes for value in state if value.numel() > 1),
        "loss": losses[-1],
        "micro_batches": plan.batch.accumulation,
    }
    ranks = session.gather(told)
    if session.is_main:
        (folder / "told.json").write_text(json.dumps(ranks), encoding="utf-8")
    session.close()


def measure(stages: int, micro_batch: int, steps: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = RECIPE.format(stages=stages, micro_batch=micro_batch)
        (folder / "pipeline.yaml").write_text(text, encoding="utf-8")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(stages)]
        command += [__file__, "--folder", name, "--steps", str(steps)]
        done = subprocess.run(
            command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(done.stderr[-4000:])
        return json.loads((folder / "told.json").read_text("utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.folder:
        worker(options.folder, options.steps)
        return
    print(
        "| stages | micro-batches | weights per rank | optimizer state per rank | sent per rank and step | minimum idle |",
        end="",
    )
    print(" idle | seconds per step | last loss |\n|---|---|---|---|---|---|---|---|---|")
    for stages, micro_batch in LAYOUTS:
        ranks = measure(stages, micro_batch, options.steps)

        def each(key: str, unit: float = 2**20, ranks: list[dict[str, Any]] = ranks) -> str:
            return ", ".join(f"{rank[key] / unit:.2f}" for rank in ranks)

        count = ranks[0]["micro_batches"]
        best = (stages - 1) / (count + stages - 1)
        print(
            f"| {stages} | {count} of {micro_batch} | {each('weights')} MiB | {each('optimizer')} MiB | "
            f"{each('sent')} MiB | {best:.0%} | {statistics.mean(rank['idle'] for rank in ranks):.0%} | "
            f"{max(rank['seconds'] for rank in ranks):.2f} | {ranks[0]['loss']:.6f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
