"""Reference log-probabilities: what the model says of every reply before training, kept as columns of the examples.

So preference tuning has its reference without a second model in memory, under any ZeRO stage; a fresh adapter changes
nothing, so the reference is its base; of an adapter that is continued, the reference is the adapter as it was. Each
example is computed once, by some rank, and found in the cache by later runs and by resumed ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, cast

import numpy as np

from finetune.data.order.assignment import assign_evaluation
from finetune.data.order.loader import evaluation_steps
from finetune.data.prepare.added_columns import ExamplesWithColumns
from finetune.data.prepare.cache import digest, find_entry, publish
from finetune.data.prepare.file_digest import source_digest
from finetune.data.table import Examples
from finetune.distributed.engines.engine import Engine
from finetune.distributed.stop_agreement import Asked, Leaving, StopAgreement
from finetune.errors import Stopped, TrainingFailed
from finetune.inference.runner import BatchRunner
from finetune.models.adapter_source import source_files
from finetune.planning.plan import Plan
from finetune.tasks.prepared_task import PreparedTask
from finetune.tasks.task import ReferenceTask, reference_columns

KIND = "reference"


def add_reference_logprobs(
    prepared: PreparedTask, engine: Engine, *, notify: Callable[[str], None], asked_to_stop: Asked | None = None
) -> None:
    """Give the examples of every split the columns that the task needs, in place. All ranks call it, with the model as it
    was built. Does nothing for most tasks.

    asked_to_stop: whether this rank was; None: nobody can ask.
    Raises: TrainingFailed if an example is missing, came twice, or has a log-probability that is not finite; Stopped on all
    ranks where one was asked to stop.
    """
    task, plan, artifacts = prepared.task, prepared.plan, prepared.artifacts
    names = reference_columns(task, artifacts)
    if not names:
        return
    runner = BatchRunner(task, artifacts, engine)
    for split, examples in prepared.datasets.items():
        key = _key(plan, examples, names)
        stored = _stored(key, notify) if key and engine.session.is_main else None
        values = engine.session.broadcast(stored)
        cached = values is not None
        if not cached:
            notify(f"{split}: computing reference log-probabilities of {len(examples):,} examples, once")
            agreement = StopAgreement(engine, asked_to_stop)
            values = _compute(runner, examples, names, plan.batch.micro_batch, agreement)
        if key and not cached and engine.session.is_main:
            publish(KIND, key, _writer(values), about=f"{split}: reference log-probabilities of {plan.recipe.name}")
        prepared.datasets[split] = ExamplesWithColumns(examples, dict(zip(names, values.T, strict=True)))


def _compute(
    runner: BatchRunner, examples: Examples, names: Sequence[str], micro_batch: int, agreement: StopAgreement
) -> np.ndarray:
    """float64 [examples, names], the same on every rank. Raises: Stopped."""
    task, session = cast(ReferenceTask, runner.task), runner.engine.session
    ids: list[int] = []
    values: list[list[float]] = []
    assignment = assign_evaluation(np.asarray(examples.costs, np.float64), session.replicas, micro_batch)
    agreement.offer()
    with suppress(Leaving), closing(runner.run(examples, evaluation_steps(assignment, session.replica))) as results:
        for result in results:
            agreement.check()
            if result is not None and result.counts:
                ids.extend(result.batch.ids)
                rows = task.reference_values(runner.artifacts, result.outputs, result.batch)
                values.extend([row[name] for name in names] for row in rows)
            agreement.offer()
    if agreement.meet():
        raise Stopped(
            "stopped before the first step; the reference log-probabilities are computed when the run resumes"
        )
    own = np.asarray(ids, np.int64), np.asarray(values, np.float64).reshape(-1, len(names))
    parts = session.all_gather(own)
    gathered_ids, numbers = (np.concatenate([part[index] for part in parts]) for index in (0, 1))
    order = np.argsort(gathered_ids, kind="stable")
    if not np.array_equal(gathered_ids[order], np.asarray(examples.ids)):
        raise TrainingFailed(
            "reference log-probabilities were not computed exactly once per example", where="before the first step"
        )
    if not np.isfinite(numbers).all():
        nonfinite_ids = gathered_ids[~np.isfinite(numbers).all(axis=1)][:32].tolist()
        raise TrainingFailed(
            "a reference log-probability is not finite",
            where=f"before the first step, examples {nonfinite_ids}",
            remedy="Check the model's weights and training.precision.",
        )
    return numbers[order]


def _stored(key: str, notify: Callable[[str], None]) -> np.ndarray | None:
    """The values of an earlier run."""
    folder = find_entry(KIND, key, notify)
    return None if folder is None else np.load(folder / "values.npy")


def _writer(values: np.ndarray) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / "values.npy", values)


def _key(plan: Plan, examples: Examples, names: Sequence[str]) -> str:
    """Names everything that the values depend on; "" where the examples have no name themselves."""
    inner: Any = examples
    kept = np.asarray(examples.ids)
    while not hasattr(inner, "folder"):
        inner = getattr(inner, "examples", None)
        if inner is None:
            return ""
    recipe = plan.recipe
    adapter = recipe.adapter.model_dump() if recipe.adapter is not None else None
    parts = [recipe.model.model_dump(), recipe.seed, plan.training.precision, adapter, list(names)]
    code = source_digest("models")  # that of data and tasks is part of the name of the examples
    return digest(KIND, 1, inner.folder.name, digest(kept.tolist()), parts, source_files(recipe.model), code)
