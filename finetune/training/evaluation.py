"""Evaluation: every example exactly once on any number of ranks; ids prove it; memory does not grow with the data."""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.data.order.assignment import Assignment
from finetune.data.order.loader import evaluation_steps, iterate_batches
from finetune.distributed.engines.engine import Engine
from finetune.distributed.prefetcher import Prefetcher
from finetune.errors import TrainingFailed
from finetune.metrics import MetricSet
from finetune.metrics.catalogue import needs_text
from finetune.tasks.task import Kit, Prediction, Task, as_writer

GATHER_EVERY = 8  # micro-batches whose predictions a rank holds before rank 0 takes them
WORST = 20


@dataclass(frozen=True)
class Evaluation:
    """The same on every rank, but for tables, which rank 0 alone has. scalars: "loss" and the metrics."""

    split: str
    scalars: dict[str, float]
    num_examples: int
    tables: dict[str, tuple[Sequence[str], Sequence[Sequence[Any]]]] = field(default_factory=dict)


def evaluate(
    task: Task,
    kit: Kit,
    engine: Engine,
    split: str,
    *,
    metrics: Sequence[str],
    assignment: Assignment,
    out: Path | None = None,
) -> Evaluation:
    """Loss as sum over global units / global count, and metrics, over the whole split. All ranks call it.

    dealt: the split's examples over the ranks. out: where rank 0 writes one prediction a line.
    Raises: TrainingFailed if an id is missing or came twice.
    """
    session = engine.session
    examples = kit.examples[split]
    tally = _Tally(kit, task, metrics, examples.ids, out) if session.is_main else None
    writer = as_writer(task) if needs_text(metrics) else None
    engine.align_buffers()
    engine.model.eval()
    held: list[Prediction] = []
    steps = evaluation_steps(assignment, session.replica)
    on_gpu = session.device.type == "cuda"
    prefetcher = Prefetcher(
        iterate_batches(examples, lambda some: task.collate(kit, some), steps, pin_memory=on_gpu), session.device
    )
    for done in range(1, assignment.micro_batches + 1):
        step, (batch,) = prefetcher.take()
        (dummy,) = step.dummies
        if not dummy or engine.shards_weights:
            with torch.no_grad():
                moved = batch.to(session.device)
                outputs = task.forward(engine.model, moved)
                prefetcher.fetch()  # a GPU still works on this one
                written = writer.generate(kit, engine.module, moved, synced=engine.shards_weights) if writer else []
                if not dummy and engine.owns_outputs:
                    predictions = task.predict(kit, outputs, moved)
                    held.extend(_with_texts(predictions, written) if writer else predictions)
        if done % GATHER_EVERY == 0:
            _hand_over(session, held, tally)
    _hand_over(session, held, tally)
    engine.model.train()
    results = tally.finish(split) if tally is not None else None
    scalars, problem = session.broadcast((results.scalars, None) if isinstance(results, Evaluation) else ({}, results))
    if problem:
        raise TrainingFailed(problem, where=f"evaluation of {split}")
    return results if isinstance(results, Evaluation) else Evaluation(split, scalars, len(examples))


def _with_texts(predictions: Sequence[Prediction], written: Sequence[Mapping[str, Any]]) -> list[Prediction]:
    return [replace(p, values={**p.values, **w}) for p, w in zip(predictions, written, strict=True)]


def _hand_over(session: Any, held: list[Prediction], tally: _Tally | None) -> None:
    for part in session.gather(held):
        if tally is not None:
            tally.add(part)
    held.clear()


class _Tally:
    """What rank 0 keeps: counts by id, losses, metrics, the worst few; predictions go to disk."""

    def __init__(self, kit: Kit, task: Task, metrics: Sequence[str], ids: Any, out: Path | None) -> None:
        self.ids = np.asarray(ids)
        self.seen = np.zeros(len(self.ids), dtype=np.uint8)
        self.strangers: list[int] = []
        self.losses: list[float] = []
        self.weight = 0
        self.worst: list[tuple[float, int, dict[str, Any]]] = []
        self.metrics = MetricSet(metrics, **kit.metric_options)
        self.out = out
        self.beside = out.with_name(out.name + ".incomplete") if out else None
        self.file = self.beside.open("w", encoding="utf-8") if self.beside else None

    def add(self, predictions: Iterable[Prediction]) -> None:
        predictions = list(predictions)
        if not predictions:
            return
        self._tick([p.id for p in predictions])
        self.metrics.add([{**p.values, "loss": p.loss, "weight": p.weight} for p in predictions])
        partial = math.fsum(p.loss for p in predictions)
        self.losses.append(partial)
        if len(self.losses) > 4096:
            self.losses = [math.fsum(self.losses)]
        for p in predictions:
            self.weight += p.weight
            row = (p.loss / max(p.weight, 1), -p.id, {**p.values, **p.shown})
            if len(self.worst) < WORST:
                heapq.heappush(self.worst, row)
            elif row[:2] > self.worst[0][:2]:
                heapq.heapreplace(self.worst, row)
            if self.file:
                line = {"id": p.id, **p.values, "loss": p.loss, "weight": p.weight, **p.shown}
                self.file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _tick(self, ids: Sequence[int]) -> None:
        """Count them; the split's own ids ascend."""
        places = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        known = self.ids[places] == ids
        np.add.at(self.seen, places[known], 1)
        self.strangers += [i for i, found in zip(ids, known, strict=True) if not found][: 10 - len(self.strangers)]

    def finish(self, split: str) -> Evaluation | str:
        """The evaluation, or what is wrong with the ids."""
        if self.file and self.beside and self.out:
            self.file.close()
            self.beside.replace(self.out)
        if self.strangers:
            return f"predictions of examples that are not of this split (ids {self.strangers})"
        missing, twice = self.ids[self.seen == 0], self.ids[self.seen > 1]
        if len(missing) or len(twice):
            return f"{len(missing)} examples missing (ids {missing[:10].tolist()}), {len(twice)} twice ({twice[:10].tolist()})"
        results = self.metrics.compute()
        loss = math.fsum(self.losses) / max(self.weight, 1)
        tables = {**results.tables, **self._worst_table()}
        return Evaluation(split, {"loss": loss, **results.scalars}, len(self.ids), tables)

    def _worst_table(self) -> dict[str, tuple[Sequence[str], Sequence[Sequence[Any]]]]:
        rows = sorted(self.worst, key=lambda row: row[:2], reverse=True)
        hidden = {"scores", "detections", "objects"}
        shown = sorted({key for _, _, fields in rows for key in fields if key not in hidden})
        if not shown:
            return {}
        table = [[-negative_id, loss, *(fields.get(key, "") for key in shown)] for loss, negative_id, fields in rows]
        return {"worst_examples": (["id", "loss", *shown], table)}
