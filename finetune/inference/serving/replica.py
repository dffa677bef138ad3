"""Replica: a Backend with the model in this process. Rows are encoded by threads, and answered by the batcher's thread."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any

from finetune.data.prepare.notices import KEY as NOTICES
from finetune.inference.answering import Outcome, RowError
from finetune.inference.serving.batcher import Batcher
from finetune.inference.serving.faults import RequestFault
from finetune.inference.serving.messages import BatchRun, ModelFacts, Piece, Record, Sampling
from finetune.inference.serving.piece_room import ROWS_AT_ONCE, PieceRoom
from finetune.inference.serving.served_model import Pieces, ServedModel
from finetune.tasks.batch import RecordOptions

if TYPE_CHECKING:
    from finetune.inference.serving.writer import Writer

ENCODERS = 2  # threads that encode: tokenizers and image decoders release Python's lock while they work


class Replica:
    """ran: called after each batch. broken: called with the reason when the model cannot answer any more. Both are
    called on the event loop.

    Made on the event loop's thread. writer: for models that write; None for others.
    """

    def __init__(
        self,
        model: ServedModel,
        *,
        writer: Writer | None = None,
        ran: Callable[[BatchRun], None] = lambda run: None,
        broken: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self._model, self._writer = model, writer
        self._loop = asyncio.get_running_loop()
        self._encoders = ThreadPoolExecutor(ENCODERS, "encoder")
        self._splitting, self._room = asyncio.Semaphore(ENCODERS), PieceRoom()
        self._batcher = Batcher(
            model.answerer,
            ran=lambda rows, seconds: self._call(ran, BatchRun(rows, seconds)),
            broken=lambda error: self._call(broken, error),
            idle=self._rest,
        )

    @property
    def facts(self) -> ModelFacts:
        return self._model.facts

    @property
    def replicas(self) -> tuple[int, int]:
        return 1, 1

    async def predict(self, rows: list[dict[str, Any]], *, top_k: int, threshold: float | None) -> list[Record]:
        """See Backend."""
        options = RecordOptions(top_k=top_k, threshold=threshold)
        if self._model.pieces is None:
            return self._records(*await self._outcomes(rows), options)
        groups = [rows[at : at + ROWS_AT_ONCE] for at in range(0, len(rows), ROWS_AT_ONCE)]
        found = await asyncio.gather(*(self._outcomes_in_turn(group) for group in groups))
        split = [item for items, _ in found for item in items]
        return self._records(split, [outcome for _, outcomes in found for outcome in outcomes], options)

    async def _outcomes_in_turn(self, rows: list[dict[str, Any]]) -> tuple[list[Pieces | RowError], list[Outcome]]:
        """`_outcomes`, once there is room for the pieces: rows wait as rows, which --max-waiting bounds."""
        async with AsyncExitStack() as room:
            async with self._splitting:
                split = await self._split(rows)
                await room.enter_async_context(self._room.hold(len(_examples_of(split))))
            return await self._answer_split(split)

    async def _outcomes(self, rows: list[dict[str, Any]]) -> tuple[list[Pieces | RowError], list[Outcome]]:
        """(the examples of each row, the outcome of each row)."""
        return await self._answer_split(await self._split(rows))

    async def _split(self, rows: list[dict[str, Any]]) -> list[Pieces | RowError]:
        return await self._loop.run_in_executor(self._encoders, self._model.split, rows)

    async def _answer_split(self, split: list[Pieces | RowError]) -> tuple[list[Pieces | RowError], list[Outcome]]:
        examples = _examples_of(split)
        answered = await self._answer(examples) if examples else []
        if len(examples) > len(split):  # merging boxes takes time
            return split, await self._loop.run_in_executor(self._encoders, self._model.merge, split, answered)
        return split, self._model.merge(split, answered)

    def _records(self, split: list[Pieces | RowError], outcomes: list[Outcome], options: RecordOptions) -> list[Record]:
        records = [self._model.record(place, outcome, options) for place, outcome in enumerate(outcomes)]
        for place, item in enumerate(split):
            if isinstance(item, list) and item[0].get(NOTICES):
                records[place][NOTICES] = list(item[0][NOTICES])
        return records

    async def _answer(self, examples: list[dict[str, Any]]) -> list[Outcome]:
        """The outcome of each example. They wait together, so pieces of a row share chunks."""
        if self._writer is not None:
            return list(await asyncio.gather(*(self._writer.reply(prompt_of(example)) for example in examples)))
        asked = _Asked(len(examples), self._loop)
        request = self._batcher.put(examples, range(len(examples)), asked.take_from_thread)
        try:
            await asked.complete
        except asyncio.CancelledError:
            self._batcher.cancel(request)
            raise
        return asked.outcomes()

    async def write(self, sampling: Sampling) -> AsyncIterator[Piece]:
        """See Backend."""
        if self._writer is None:
            raise RequestFault(404, "no_text", f"the task {self.facts.task} writes no text: use /predict")
        async for piece in self._writer.write(sampling):
            yield piece

    async def close(self) -> None:
        """End the threads after the chunk that they work on."""
        await self._loop.run_in_executor(None, self._batcher.close)
        self._encoders.shutdown(wait=False, cancel_futures=True)
        if self._writer is not None:
            await self._loop.run_in_executor(None, self._writer.close)

    def _rest(self) -> None:
        """On the batcher's thread, when nothing has come for a moment."""
        if self._model.pieces is not None:
            self._model.pieces.forget()
        release_memory()

    def _call(self, function: Callable[[Any], None], value: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, value)


def release_memory() -> None:
    """Give freed memory back to the system: batches of many sizes leave holes in the heap of the C library."""
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _examples_of(split: list[Pieces | RowError]) -> list[dict[str, Any]]:
    return [example for item in split if not isinstance(item, RowError) for example in item]


def prompt_of(example: Any) -> list[int]:
    """The token ids of an encoded prompt, or of a source."""
    return [int(token) for token in example["input_ids"]]


class _Asked:
    """The outcomes of one request as they come. complete: done once there is one for each example."""

    def __init__(self, count: int, loop: asyncio.AbstractEventLoop) -> None:
        self._outcomes: list[Outcome | None] = [None] * count
        self._missing, self._loop = count, loop
        self.complete: asyncio.Future[None] = loop.create_future()

    def take_from_thread(self, place: int, outcome: Outcome) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.take, place, outcome)

    def take(self, place: int, outcome: Outcome) -> None:
        self._outcomes[place] = outcome
        self._missing -= 1
        if not self._missing and not self.complete.done():
            self.complete.set_result(None)

    def outcomes(self) -> list[Outcome]:
        return [outcome for outcome in self._outcomes if outcome is not None]
