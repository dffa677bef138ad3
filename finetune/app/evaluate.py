"""`finetune evaluate`: a checkpoint of a run on any of its splits, on any number of ranks."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from finetune.app.opening import open_recipe
from finetune.app.train import check, is_worker, notify, plan_launch, worker
from finetune.distributed.launch import SUPERVISED, run_workers
from finetune.errors import UserError
from finetune.recipe.load import LoadedRecipe
from finetune.tracking.run import Run


def evaluate(run: Path, *, checkpoint: str, split: str, sets: list[str], processes: int | None) -> None:
    """Evaluate and print the figures; predictions go to predictions/. Raises: UserError, TrainingFailed."""
    opened = Run.open(run)
    loaded = open_recipe(str(opened.recipe_file), sets)
    if is_worker():
        with worker():
            _work(opened, loaded, checkpoint, split)
        return
    check(loaded)
    _check_split(loaded, split)
    arguments = ["evaluate", str(opened.path), "--checkpoint", checkpoint, "--split", split]
    for item in sets:
        arguments += ["--set", item]
    run_workers(plan_launch(loaded, arguments, processes), opened.logs, lambda line: None)
    print(json.dumps(json.loads(_result_file(opened).read_text(encoding="utf-8")), indent=1))


def _check_split(loaded: LoadedRecipe, split: str) -> None:
    data = loaded.recipe.data
    there = {"train": True, "validation": bool(data.validation or data.validation_fraction), "test": bool(data.test)}
    if not there.get(split):
        names = ", ".join(name for name, given in there.items() if given)
        raise UserError(f"the recipe has no split {split}", remedy=f"it has {names}; or --set data.{split}=FILE")


def _work(run: Run, loaded: LoadedRecipe, checkpoint: str, split: str) -> None:
    from finetune.app.export import find_checkpoint
    from finetune.app.workers.context import open_session, plan_here, quieten, set_up
    from finetune.app.workers.train import SilentListener, make_loop
    from finetune.distributed.env import from_environ
    from finetune.training.checkpoint_reader import load_checkpoint
    from finetune.training.stop import StopRequest

    env = from_environ()
    quieten(env.rank if env else 0, Path(os.environ.get(SUPERVISED, run.logs)))
    plan = plan_here(loaded.recipe, env.world_size if env else 1)
    session = open_session(plan)
    context = set_up(session, loaded.recipe, plan, notify if session.is_main else lambda text: None)
    found = find_checkpoint(run, checkpoint)
    load_checkpoint(context.engine, found)
    loop = make_loop(context, run, SilentListener(), StopRequest())
    loop.progress.step = found.step
    result = loop.measure(split)
    if session.is_main:
        row: dict[str, Any] = {"checkpoint": found.path.name, "split": split, "examples": result.num_examples}
        text = json.dumps({**row, **result.scalars, "time": time.time()})
        _result_file(run).write_text(text, encoding="utf-8")
    session.close()


def _result_file(run: Run) -> Path:
    return run.path / "evaluation.json"
