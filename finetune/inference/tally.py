"""What rank 0 keeps of an evaluation: counts by id, sums, metrics, the worst few examples. Predictions go to the disk."""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from finetune.metrics import MetricSet
from finetune.metrics.evaluation import WORST_EXAMPLES, Evaluation
from finetune.tasks.batch import Answer, Score

WORST = 20
NOT_SHOWN = {"scores", "tag_scores", "detections", "objects"}  # of the worst examples: too long for a table

Table = tuple[Sequence[str], Sequence[Sequence[Any]]]


class Tally:
    """Takes answers and scores in any order. Memory does not grow with the text of the predictions."""

    def __init__(self, metrics: Sequence[str], ids: Any, out: Path | None, **metric_options: Any) -> None:
        """ids: of the split, ascending. out: where one prediction per line is written, renamed when all are there; `finish`
        or `abandon` closes it.
        """
        self.ids = np.asarray(ids)
        self.seen = np.zeros(len(self.ids), dtype=np.uint8)
        self.unknown_ids: list[int] = []
        self.losses: list[float] = []
        self.weight = 0
        self.worst: list[tuple[float, int, dict[str, Any]]] = []
        self.metrics = MetricSet(metrics, **metric_options)
        self.out = out
        self.beside = out.with_name(out.name + ".incomplete") if out else None
        self.file = self.beside.open("w", encoding="utf-8") if self.beside else None

    def add(self, pairs: Iterable[tuple[Answer, Score]]) -> None:
        """Answers with their scores."""
        pairs = list(pairs)
        if not pairs:
            return
        self._count([answer.id for answer, _ in pairs])
        values = [{**answer.values, **score.reference} for answer, score in pairs]
        self.metrics.add(
            [{**fields, "loss": s.loss, "weight": s.weight} for fields, (_, s) in zip(values, pairs, strict=True)]
        )
        self.losses.append(math.fsum(score.loss for _, score in pairs))
        if len(self.losses) > 4096:
            self.losses = [math.fsum(self.losses)]
        with self._named_file():
            for fields, (answer, score) in zip(values, pairs, strict=True):
                self.weight += score.weight
                self._keep(fields, answer, score)

    @contextmanager
    def _named_file(self) -> Iterator[None]:
        """An error of the disk names the file, which `write` and `close` leave out."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.beside)) from error

    def _keep(self, fields: dict[str, Any], answer: Answer, score: Score) -> None:
        shown = {**answer.shown, **score.shown}
        row = (score.loss / max(score.weight, 1), -answer.id, {**fields, **shown})
        if len(self.worst) < WORST:
            heapq.heappush(self.worst, row)
        elif row[:2] > self.worst[0][:2]:
            heapq.heapreplace(self.worst, row)
        if self.file:
            line = {"id": answer.id, **fields, "loss": score.loss, "weight": score.weight, **shown}
            self.file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _count(self, ids: Sequence[int]) -> None:
        """Tick them off; the split's own ids ascend."""
        positions = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        known = self.ids[positions] == ids
        np.add.at(self.seen, positions[known], 1)
        unknown = [i for i, is_known in zip(ids, known, strict=True) if not is_known]
        self.unknown_ids += unknown[: 10 - len(self.unknown_ids)]

    def finish(self, split: str) -> Evaluation | str:
        """The evaluation, or what is wrong with the ids."""
        if self.file and self.beside and self.out:
            with self._named_file():
                self.file.close()
                self.beside.replace(self.out)
        if self.unknown_ids:
            return f"predictions of examples that are not in this split (ids {self.unknown_ids})"
        missing, twice = self.ids[self.seen == 0], self.ids[self.seen > 1]
        if len(missing) or len(twice):
            return f"{len(missing)} examples missing (ids {missing[:10].tolist()}), {len(twice)} twice ({twice[:10].tolist()})"
        results = self.metrics.compute()
        loss = math.fsum(self.losses) / max(self.weight, 1)
        tables = {**results.tables, **self._worst_table()}
        undefined = results.undefined if math.isfinite(loss) else {"loss": f"it is {loss}", **results.undefined}
        return Evaluation(split, {"loss": loss, **results.scalars}, len(self.ids), tables, undefined)

    def abandon(self) -> None:
        """The evaluation ended before its end: nothing is left of its predictions."""
        if self.file and self.beside:
            with suppress(OSError):  # must not mask why it ended
                self.file.close()
                self.beside.unlink()

    def _worst_table(self) -> dict[str, Table]:
        rows = sorted(self.worst, key=lambda row: row[:2], reverse=True)
        columns = sorted({key for _, _, fields in rows for key in fields if key not in NOT_SHOWN})
        if not columns:
            return {}
        table = [[-negative_id, loss, *(fields.get(key, "") for key in columns)] for loss, negative_id, fields in rows]
        return {WORST_EXAMPLES: (["id", "loss", *columns], table)}
