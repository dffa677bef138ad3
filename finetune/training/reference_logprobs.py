"""Before the first step: what the model says of every example as it is, kept as columns of the examples.

So preference tuning has its reference without a second model in memory, under any ZeRO stage; a fresh adapter changes
nothing, so that the reference is its base. Each example is computed once, by some rank, and found in the cache by later
runs and by resumed ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.data.order.assignment import assign_evaluation
from finetune.data.order.loader import evaluation_steps, iterate_batches
from finetune.data.prepare.added_columns import ExamplesWithColumns
from finetune.data.prepare.cache import cache_folder, digest, publish
from finetune.data.table import Examples
from finetune.distributed.engines.engine import Engine
from finetune.errors import TrainingFailed
from finetune.models.source import resolve_model
from finetune.tasks.task import Kit, Task, reference_columns

KIND = "reference"


def add_reference_logprobs(
    task: Task, kit: Kit, engine: Engine, *, micro_batch: int, notify: Callable[[str], None]
) -> None:
    """Give the examples of every split the columns that the task wants. All ranks call it, with the model as it was built.

    Raises: TrainingFailed if an example is missing, came twice, or got a value that is no number.
    """
    names = reference_columns(task, kit)
    for split, examples in kit.examples.items() if names else ():
        key = _key(kit, examples, names)
        kept = engine.session.broadcast(bool(key) and (cache_folder() / KIND / key).is_dir())
        if not kept:
            notify(f"{split}: what the reference says of {len(examples):,} examples is computed, once")
            values = _compute(task, kit, engine, examples, names, micro_batch)
        else:
            stored = np.load(cache_folder() / KIND / key / "values.npy") if engine.session.is_main else None
            values = engine.session.broadcast(stored)
        if key and not kept and engine.session.is_main:
            publish(KIND, key, _writer(values))
        kit.examples[split] = ExamplesWithColumns(examples, dict(zip(names, values.T, strict=True)))


def _compute(
    task: Any, kit: Kit, engine: Engine, examples: Examples, names: Sequence[str], micro_batch: int
) -> np.ndarray:
    """float64 [examples, names], the same on every rank."""
    session = engine.session
    ids: list[int] = []
    values: list[list[float]] = []
    assignment = assign_evaluation(np.asarray(examples.costs, np.float64), session.replicas, micro_batch)
    engine.model.eval()
    for step, (batch,) in iterate_batches(
        examples, lambda some: task.collate(kit, some), evaluation_steps(assignment, session.replica)
    ):
        (dummy,) = step.dummies
        if dummy and not engine.shards_weights:
            continue
        with torch.no_grad():
            moved = batch.to(session.device)
            outputs = task.forward(engine.model, moved)
            if not dummy and engine.owns_outputs:
                ids.extend(batch.ids)
                values.extend([row[name] for name in names] for row in task.reference_values(kit, outputs, moved))
    engine.model.train()
    own = np.asarray(ids, np.int64), np.asarray(values, np.float64).reshape(-1, len(names))
    parts = session.all_gather(own)
    found, numbers = (np.concatenate([part[place] for part in parts]) for place in (0, 1))
    order = np.argsort(found, kind="stable")
    if not np.array_equal(found[order], np.asarray(examples.ids)):
        raise TrainingFailed(
            "the reference's values do not belong to every example once", where="before the first step"
        )
    if not np.isfinite(numbers).all():
        nonfinite_ids = found[~np.isfinite(numbers).all(axis=1)][:32].tolist()
        raise TrainingFailed(
            "the reference gives a reply a probability that is no number",
            where=f"before the first step, examples {nonfinite_ids}",
            remedy="look at the model's weights and at training.precision",
        )
    return numbers[order]


def _writer(values: np.ndarray) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / "values.npy", values)


def _key(kit: Kit, examples: Examples, names: Sequence[str]) -> str:
    """Names everything that the values depend on; "" where the examples have no name themselves."""
    inner: Any = examples
    kept = np.asarray(examples.ids)
    while not hasattr(inner, "folder"):
        inner = getattr(inner, "examples", None)
        if inner is None:
            return ""
    recipe = kit.recipe
    adapter = recipe.adapter.model_dump() if recipe.adapter is not None else None
    asked = [recipe.model.model_dump(), recipe.seed, recipe.training.precision, adapter, list(names)]
    return digest(KIND, 1, inner.folder.name, digest(kept.tolist()), asked, _weights(recipe.model.source))


def _weights(source: str) -> list[Any]:
    """Files of a local model by size and time; a hub id is named by its revision, which the recipe holds."""
    folder = Path(resolve_model(source)) if source else Path()
    if not source or not folder.is_dir():
        return []
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
