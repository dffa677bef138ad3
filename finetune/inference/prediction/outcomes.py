"""What a rank writes of a chunk, and what becomes of it: one line of JSON per example.

{"digest": "...", "content": "..."}                             of the examples that were answered, and of the lines below
{"row": 17, "record": {...}}                                    a row that is one example
{"row": 17, "record": {...}, "scored": {...}}                   ... with what the metrics at the end need
{"row": 18, "piece": {...}, "answer": {...}} or "error": {...}  one of several examples of a row

The file of a chunk is published as a whole, and its lines become those of the output when its window is complete.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.inference.answering import PIECE, Answered, Outcome, Part, RowError, RowSplitter
from finetune.inference.prediction.answer_files import pack_answers
from finetune.inference.recording import record_outcome
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.batch import Answer, RecordOptions, Score
from finetune.tasks.task import Task


@dataclass(frozen=True)
class Recorder:
    """Outcomes as JSON values. Picklable."""

    task: Task
    artifacts: TaskArtifacts
    splitter: RowSplitter
    options: RecordOptions

    def write(self, digest: str, examples: Sequence[Mapping[str, Any]], outcomes: Sequence[Outcome]) -> bytes:
        """The answers file of a chunk."""
        lines = []
        for example, outcome in zip(examples, outcomes, strict=True):
            line = self._part(example, outcome) if PIECE in example else self._whole(int(example["id"]), outcome)
            lines.append(json.dumps(line, ensure_ascii=False))
        return pack_answers(digest, lines)

    def _whole(self, row: int, outcome: Outcome) -> dict[str, Any]:
        line: dict[str, Any] = {"row": row, "record": self.record(row, outcome)}
        if isinstance(outcome, Answered) and outcome.score is not None:
            line["scored"] = {"values": dict(outcome.answer.values), "score": _score(outcome.score)}
        return line

    def _part(self, example: Mapping[str, Any], outcome: Outcome) -> dict[str, Any]:
        line: dict[str, Any] = {"row": int(example["id"]), PIECE: example[PIECE]}
        if isinstance(outcome, RowError):
            return {**line, "error": outcome.record()}
        answer = {"values": dict(outcome.answer.values), "shown": dict(outcome.answer.shown)}
        return {**line, "answer": answer, **({"score": _score(outcome.score)} if outcome.score else {})}

    def record(self, row: int, outcome: Outcome) -> dict[str, Any]:
        """What the user reads of a row, without kept columns."""
        return record_outcome(self.task, self.artifacts, row, outcome, self.options)

    def merge(self, row: int, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The line of a row from those of all its parts, as if it had been one example."""
        parts = [Part(line[PIECE], _outcome(row, line)) for line in lines]
        parts.sort(key=lambda part: part.piece["index"])
        return self._whole(row, self.splitter.merge(row, parts))


def _score(score: Score) -> dict[str, Any]:
    return {
        "loss": score.loss,
        "weight": score.weight,
        "reference": dict(score.reference),
        "shown": dict(score.shown),
    }


def _outcome(row: int, line: Mapping[str, Any]) -> Outcome:
    if "error" in line:
        return RowError(line["error"]["kind"], line["error"]["message"])
    answer, score = line["answer"], line.get("score")
    return Answered(Answer(row, answer["values"], answer["shown"]), Score(row, **score) if score is not None else None)
