"""A prediction without a model: a task of one line, an answerer that adds up token ids, and the process that reads and writes
as a thread. Tests and benchmarks of windows, queues and outputs use it.
"""

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.sources.streams import MemoryStream
from finetune.inference.answering import Answered, Chunk, Outcome, RowError
from finetune.inference.failure_limit import FailureLimit
from finetune.inference.prediction.collector import Collector
from finetune.inference.prediction.feeder import Asked, Feeder
from finetune.inference.prediction.jsonl_output import JsonLinesOutput
from finetune.inference.prediction.keeper import Keeper, _reported
from finetune.inference.prediction.outcomes import Recorder
from finetune.inference.prediction.parts import Parts
from finetune.inference.prediction.state import State
from finetune.inference.whole_rows import WholeRows
from finetune.tasks.batch import Answer, RecordOptions, Score
from finetune.tasks.text_classification.card import CARD


class AddUp:
    """A task: the text "aabc" is the token ids [97, 97, 98, 99], and its answer their sum. A text "bad" cannot be encoded."""

    card = CARD

    def encode(self, artifacts: Any, rows: Any, *, with_targets: bool) -> list[Any]:
        return [self._encode(row, with_targets) for row in rows]

    def _encode(self, row: Any, with_targets: bool) -> Any:
        if row["text"] == "bad":
            return BadRow("it is bad")
        if row["text"] == "raises":
            raise ZeroDivisionError("in encode")
        if with_targets and not isinstance(row["label"], int):
            return BadRow(f"no such class: {row['label']}")
        example: dict[str, Any] = {"input_ids": list(map(ord, row["text"]))}
        return {**example, "label": row["label"]} if with_targets else example

    def record(self, artifacts: Any, answer: Answer, options: RecordOptions) -> dict[str, Any]:
        return {"sum": answer.values["sum"]}


@dataclass
class AddingAnswerer:
    """seconds: that a unit of cost takes. dies_at: a text whose example ends the whole chunk with an exception.
    fails: at every row. waits: for another rank's first answer.
    """

    budget: int = 40
    seconds: float = 0.0
    dies_at: str = ""
    fails: bool = False
    waits: bool = False
    chunks: int = 0
    failures: FailureLimit = field(default_factory=FailureLimit)

    def cost(self, example: dict[str, Any]) -> int:
        return len(example["input_ids"])

    def run(self, chunks: Iterable[Chunk | None]) -> Iterator[tuple[Chunk, list[Outcome]]]:
        for chunk in chunks:
            if chunk is None:
                continue
            self.chunks += 1
            while self.waits and not self.failures.answered_elsewhere():
                time.sleep(0.01)
            outcomes: list[Outcome] = []
            for example in chunk.examples:
                ids = [int(number) for number in example["input_ids"]]
                text = "".join(map(chr, ids))
                if self.dies_at and text == self.dies_at:
                    raise RuntimeError("CUDA error: device-side assert triggered")
                if text == "fails" or self.fails:
                    self.failures.note_failure("it failed")
                    outcomes.append(RowError("failed", "it failed"))
                    continue
                self.failures.answered += 1
                score = Score(example["id"], 0.5, 1, {"reference": example["label"]}) if "label" in example else None
                outcomes.append(Answered(Answer(example["id"], {"sum": sum(ids)}), score))
            time.sleep(self.seconds * sum(map(self.cost, chunk.examples)))
            yield chunk, outcomes


def cost(example: dict[str, Any]) -> int:
    return len(example["input_ids"])


def recorder() -> Recorder:
    task: Any = AddUp()
    artifacts: Any = SimpleNamespace()
    return Recorder(task, artifacts, WholeRows(task, artifacts), RecordOptions())


def asked(rows: Any, *, budget: int = 40, window_rows: int = 50, keep: tuple[str, ...] = (), **options: Any) -> Asked:
    stream = MemoryStream(rows, CARD, keep=keep) if isinstance(rows, list) else rows
    return Asked(stream, CARD, recorder().splitter, cost, budget, window_rows=window_rows, **options)


def make(asked: Asked, output: Path, state: State | None = None) -> tuple[Feeder, Collector]:
    """What the process that reads and writes has, going on from `state` or the state of an earlier start."""
    parts = Parts(output)
    parts.folder.mkdir(parents=True, exist_ok=True)
    state = state or State.read(parts.state)
    return Feeder(asked, parts, state.windows, state.rows), Collector(parts, JsonLinesOutput(output), recorder(), state)


def keep_in_thread(asked: Asked, output: Path, max_errors: int | None = None) -> Any:
    """The connection to a Keeper that runs in a thread of this process."""
    ours, theirs = Pipe()
    feeder, collector = make(asked, output)

    def work() -> None:
        try:
            Keeper(feeder, collector, theirs, max_errors).run()
        except (EOFError, OSError):
            return  # the other end has gone
        except Exception as error:
            theirs.send(("failed", _reported(error)))

    threading.Thread(target=work, daemon=True).start()
    return ours
