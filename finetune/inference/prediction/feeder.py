"""From rows to windows of chunks: rows are read, encoded without a model, cut into chunks by cost, and spooled for ranks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.prepare.notices import KEY as NOTICES
from finetune.data.prepare.notices import Notices
from finetune.data.prepare.pool import Chunk as Units
from finetune.data.prepare.pool import map_chunks
from finetune.data.sources.streams import WITHOUT_TARGET, RowStream, StreamRow
from finetune.data.table import Row
from finetune.errors import EmptyData, is_failure
from finetune.inference.answering import PIECE, RowError, RowSplitter
from finetune.inference.pieces.counts import CutRows
from finetune.inference.prediction.answer_files import answered_examples
from finetune.inference.prediction.parts import Parts, disk_errors
from finetune.inference.prediction.spool import write_spool
from finetune.inference.prediction.windows import WINDOW_BYTES, WINDOW_ROWS, cut_into_chunks, row_bytes
from finetune.recipe.card import TaskCard
from finetune.recipe.quotas import available_cores
from finetune.tasks.task import Encoded
from finetune.units import format_number

POOL_ROWS = 256  # that a worker encodes at a time
POOL_SECONDS = 2.0  # encoding a window in this process takes longer: the next ones are encoded by workers

Pieces = list[dict[str, Any]] | RowError


@dataclass(frozen=True)
class Asked:
    """What is asked, for the process that reads it. Picklable, for where that process cannot be forked.

    cost: of an example as the splitter makes it, in the unit of `budget`. workers: processes that may encode at the same
    time.
    """

    stream: RowStream
    card: TaskCard
    splitter: RowSplitter
    cost: Callable[[dict[str, Any]], int]
    budget: int
    workers: int = 1
    window_rows: int = WINDOW_ROWS

    def has_targets(self, row: Row) -> bool:
        """Whether the row says what its answer should be."""
        if not self.stream.labeled:
            return False
        wanted = [roles for roles in self.card.rows.required if set(roles) & set(self.card.rows.targets)]
        if wanted:
            return all(any(row.get(role) is not None for role in roles) for roles in wanted)
        messages = row.get("messages")
        last = messages[-1] if isinstance(messages, list) and messages else None
        ends_in_reply = isinstance(last, dict) and last.get("role", last.get("from")) in ("assistant", "gpt")
        return ends_in_reply or any(row.get(role) is not None for role in self.card.rows.targets)


@dataclass
class FedWindow:
    """A window that ranks may work on. todo: its chunks without answers; failed: those of them at which a rank failed."""

    number: int
    rows: int
    chunks: int
    todo: list[int]
    failed: list[int]
    done: int = 0  # of todo

    @property
    def is_done(self) -> bool:
        return self.done >= len(self.todo)


@dataclass
class Feeder:
    """Makes windows, one after the other. first_window, first_row: where an earlier start of the command has come to."""

    asked: Asked
    parts: Parts
    first_window: int = 0
    first_row: int = 0
    notices: Notices = field(default_factory=Notices)
    cut: CutRows = field(default_factory=CutRows)
    damaged: int = 0  # chunks of an earlier start whose answers are not as they were written

    def notes(self) -> list[str]:
        """Lines for the user; complete when all windows are made."""
        damaged = f"{format_number(self.damaged, 'chunk')} of an earlier start had damaged answers: answered again"
        return [*([damaged] if self.damaged else []), *self.notices.lines(), *self.cut.report()]

    def windows(self) -> Iterator[FedWindow]:
        """All windows from the first one on. Raises: FinetuneError for a full disk; UserError for input that changed."""
        number, workers = self.first_window, 1
        for rows, last in read_windows(self.asked, self.first_row):
            started = time.monotonic()
            pieces = encode_window(self.asked, rows, self.notices, workers=workers)
            self.cut.add_all(pieces)
            yield self._spool(number, rows, pieces, last=last)
            if time.monotonic() - started > POOL_SECONDS:
                workers = self.asked.workers
            number += 1

    def _spool(self, number: int, rows: Sequence[StreamRow], pieces: Sequence[Pieces], *, last: bool) -> FedWindow:
        folder = self.parts.window(number)
        chunks = write_spool(folder, cut_window(self.asked, pieces, last=last))
        with (
            disk_errors(folder),
            (folder / "rows.jsonl").open("w", encoding="utf-8", errors="backslashreplace") as file,
        ):
            for row, item in zip(rows, pieces, strict=True):
                file.write(json.dumps(_row_line(row, item), ensure_ascii=False) + "\n")
        todo = [index for index, chunk in enumerate(chunks) if not self._is_answered((number, index), chunk.digest)]
        failed = [index for index in todo if self.parts.failed((number, index)).exists()]
        return FedWindow(number, len(rows), len(chunks), todo, failed)

    def _is_answered(self, name: tuple[int, int], digest: str) -> bool:
        """Whether an earlier start has answered exactly these examples. Answers to others are removed."""
        path = self.parts.answers(name)
        answered = answered_examples(path)
        if answered is None or answered == digest:
            return answered is not None
        self.damaged += not answered
        for stale in (path, self.parts.died(name), self.parts.failed(name), self.parts.lost(name)):
            stale.unlink(missing_ok=True)
        return False


def read_windows(asked: Asked, first_row: int = 0) -> Iterator[tuple[list[StreamRow], bool]]:
    """(rows of a window, whether it is the last). One row is read ahead, to know. Nothing of data without rows."""
    rows: list[StreamRow] = []
    size = 0
    for row in _rows(asked, first_row):
        if len(rows) >= asked.window_rows or size >= WINDOW_BYTES:
            yield rows, False
            rows, size = [], 0
        rows.append(row)
        size += row_bytes(row.row)
    if rows:
        yield rows, True


def _rows(asked: Asked, first_row: int) -> Iterator[StreamRow]:
    try:
        yield from asked.stream.rows(first_row)
    except EmptyData:
        return


def encode_window(asked: Asked, rows: Sequence[StreamRow], notices: Notices, *, workers: int = 1) -> list[Pieces]:
    """The examples of each row, or why there are none; what was changed in a row goes to `notices`."""
    job = _EncodeJob(asked, rows)
    units = [(first, min(first + POOL_ROWS, len(rows))) for first in range(0, len(rows), POOL_ROWS)]
    pieces = [item for _, results in map_chunks(job, units, workers=workers) for item in results]
    for index, item in enumerate(pieces):
        if isinstance(item, list) and rows[index].notices:
            notices.add(rows[index].place, rows[index].notices)
        for example in item if isinstance(item, list) else ():
            example["id"] = rows[index].number
            if kinds := example.pop(NOTICES, None):
                notices.add(rows[index].place, kinds)
    return pieces


def cut_window(asked: Asked, pieces: Sequence[Pieces], *, last: bool) -> list[list[dict[str, Any]]]:
    """The examples of each chunk of a window, from the pieces of its rows."""
    examples = [example for item in pieces if isinstance(item, list) for example in item]
    groups = [example.pop(_GROUP) for example in examples]
    costs = [max(1, int(asked.cost(example))) for example in examples]
    cut = cut_into_chunks(costs, asked.budget, groups=groups, last=last)
    return [[examples[index] for index in chunk] for chunk in cut]


def _row_line(row: StreamRow, pieces: Pieces) -> dict[str, Any]:
    line: dict[str, Any] = {"row": row.number}
    if row.kept:
        line["kept"] = dict(row.kept)
    if isinstance(pieces, RowError):
        line["error"] = pieces.record()
    return line


_GROUP = "$group"  # of an example, until its window is cut: 1 with targets, 0 without


class _EncodeJob:
    """Encodes rows [first, last) of a window; see pool.DivisibleJob."""

    def __init__(self, asked: Asked, rows: Sequence[StreamRow]) -> None:
        self.asked, self.rows = asked, rows

    def run(self, units: Units) -> list[Pieces]:
        rows = [row.row for row in self.rows[units[0] : units[1]]]
        results: list[Pieces] = [error_of(row) if isinstance(row, BadRow) else [] for row in rows]
        waiting: dict[bool, list[int]] = {True: [], False: []}
        for index, row in enumerate(rows):
            if not isinstance(row, BadRow):
                waiting[self.asked.has_targets(row)].append(index)
        for index, result in self._split([(i, rows[i]) for i in waiting[True]], with_targets=True):
            if isinstance(result, BadRow):  # it may be its target alone that cannot be used
                waiting[False].append(index)
                results[index] = error_of(result)
            else:
                results[index] = result
        for index, result in self._split([(i, rows[i]) for i in waiting[False]], with_targets=False):
            if isinstance(result, BadRow):
                results[index] = error_of(result)
            else:
                if isinstance(results[index], RowError):
                    notice = f"{WITHOUT_TARGET}: {results[index].message}"  # type: ignore[union-attr]
                    result[0].setdefault(NOTICES, []).append(notice)
                results[index] = result
        return results

    def _split(
        self, rows: Sequence[tuple[int, Any]], *, with_targets: bool
    ) -> Iterator[tuple[int, list[dict[str, Any]] | BadRow]]:
        if not rows:
            return
        for (index, _), result in zip(rows, self._try([row for _, row in rows], with_targets), strict=True):
            if isinstance(result, list):
                for number, example in enumerate(result):
                    example[_GROUP] = int(with_targets)
                    if len(result) > 1:
                        example.setdefault(PIECE, {}).update(index=number, count=len(result))
            yield index, result

    def _try(self, rows: Sequence[Any], with_targets: bool) -> list[list[dict[str, Any]] | BadRow]:
        return map_together(rows, lambda some: self.asked.splitter.split(some, with_targets=with_targets))

    def describe(self, units: Units) -> str:
        return f"{self.rows[units[0]].place} to {self.rows[units[1] - 1].place}"

    def lost(self, units: Units, why: str) -> list[Pieces]:
        return [RowError("bad_row", why)]

    def join(self, results: Sequence[list[Pieces]]) -> list[Pieces]:
        return [item for result in results for item in result]


def load_examples(splitter: RowSplitter, examples: Sequence[dict[str, Any]]) -> list[Encoded]:
    """RowSplitter.load; an example at which it raises an exception becomes a BadRow, and is the only one."""
    return map_together(examples, splitter.load)


def map_together(items: Sequence[Any], work: Callable[[Sequence[Any]], list[Any]]) -> list[Any]:
    """What `work` makes of all items together; where that fails, one by one, so that the one at which it fails is found."""
    try:
        return work(items)
    except BaseException as error:
        if not is_failure(error):
            raise
        if len(items) > 1:
            return [result for item in items for result in map_together([item], work)]
        return [error if isinstance(error, BadRow) else BadRow(f"{type(error).__name__}: {error}")]


def error_of(bad: BadRow) -> RowError:
    """Why the row has no answer. A BadRow that knows its kind says it in `kind`."""
    return RowError(getattr(bad, "kind", "bad_row"), str(bad))


def spare_cores(ranks_here: int) -> int:
    """Cores of this host that its ranks do not need; at least 1."""
    return max(1, available_cores() - ranks_here)
