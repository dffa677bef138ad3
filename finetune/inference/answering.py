"""The words of prediction: what is asked, what is answered, and who answers.

    rows -> RowSplitter.split -> examples -> chunks of equal cost -> RowSplitter.load -> Answerer -> outcomes
         -> RowSplitter.merge, where a row was split -> Task.record -> lines, in row order

One Answerer serves `finetune predict` (ranks pull chunks), `finetune.load(...).predict` (one process) and `finetune serve`
(chunks are made of requests). It knows neither files nor other ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from finetune.data.bad_rows import BadRow
from finetune.data.table import Row
from finetune.inference.failure_limit import FailureLimit
from finetune.tasks.batch import Answer, Score
from finetune.tasks.task import Encoded

PIECE = "piece"
"""Key of an example that is one of several of its row: {"index": 0, "count": 4, ...}, JSON values that `merge` needs."""


@dataclass(frozen=True)
class RowError:
    """Why a row has no answer.

    kind: bad_row (cannot be read or encoded), too_long, empty, out_of_memory, failed (the model raised an error for it
    alone). message: one sentence for people.
    """

    kind: str
    message: str

    def record(self) -> dict[str, str]:
        """The value under "error" in an output row."""
        return {"kind": self.kind, "message": self.message}


@dataclass(frozen=True)
class Answered:
    """score: where the example has targets; otherwise None."""

    answer: Answer
    score: Score | None = None


Outcome = Answered | RowError


@dataclass(frozen=True)
class Chunk:
    """Examples of about equal cost that are answered together, all with targets or all without.

    name: (window, number within it) in `finetune predict`; any pair elsewhere. examples: as Task.encode makes them, with
    "id", the number of the row in the input (from 0).
    """

    name: tuple[int, int]
    examples: Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Part:
    """What became of one example of a row that was split. piece: as `split` wrote it, under PIECE."""

    piece: Mapping[str, Any]
    outcome: Outcome


class RowSplitter(Protocol):
    """How a row becomes examples, and the answers to them one answer. inference/whole_rows.py has the usual one: a row is
    one example. Picklable: rows are split in another process than the model's.
    """

    def split(self, rows: Sequence[Row], *, with_targets: bool) -> list[list[dict[str, Any]] | BadRow]:
        """The examples of each row; several of them with PIECE, numbered from 0. No model is there, and no GPU.

        They wait on the disk until a rank takes them: integers, arrays, bytes and JSON values. What is large when it is
        decoded, such as pixels, is left to `load`.
        """
        ...

    def load(self, examples: Sequence[dict[str, Any]]) -> list[Encoded]:
        """The examples as Task.collate takes them, or a BadRow. Called on a rank, shortly before they are answered."""
        ...

    def merge(self, row: int, parts: Sequence[Part]) -> Outcome:
        """The outcome of a row that was split, from all of its parts, by ascending index. Called where no model is."""
        ...


class Answerer(Protocol):
    """A model in this process that answers chunks."""

    @property
    def failures(self) -> FailureLimit:
        """On how many rows it has failed."""
        ...

    def cost(self, example: dict[str, Any]) -> int:
        """What the example takes of `budget`: tokens or pixels, those to be written included."""
        ...

    @property
    def budget(self) -> int:
        """The cost of a chunk that is as large as is fast. It depends on the model and the options alone, so that the
        chunks of a file, and with them the answers, are the same on any number of ranks.
        """
        ...

    def run(self, chunks: Iterable[Chunk | None]) -> Iterator[tuple[Chunk, list[Outcome]]]:
        """The outcomes of each chunk, one per example in its order. Chunks may come back in another order.

        It takes the next chunk while it works on others, so `chunks` may be a queue that many processes pull from. Where
        none is to be had at once, `chunks` gives None: what is in work is then finished and handed back before the next
        one is asked for, which may wait. An example that fails ends only itself.
        Raises: TrainingFailed for a device that no longer works (a CUDA error that sticks); Halted for a model that fails on
        every row.
        """
        ...
