"""ReplicaPool: a Backend of processes with a model each, behind one queue. A process that ends is started again.

Rows are sent in parts of at most PART rows, each to the ready replica that has the least to do and room for it; the others
wait here. A replica that ends takes nothing with it: each of its parts is tried once more, on a replica that does nothing else
meanwhile. So a part that ends replicas fails alone.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import subprocess
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from finetune.distributed.halted import is_halted
from finetune.distributed.rank_ends import describe_end
from finetune.errors import FinetuneError, TrainingFailed
from finetune.inference.serving.faults import RequestFault
from finetune.inference.serving.messages import (
    Answers,
    Ask,
    BatchRun,
    Cancel,
    Message,
    ModelFacts,
    Piece,
    Ready,
    Record,
    Refused,
    Sampling,
    Write,
    Written,
    receive,
    send,
)
from finetune.inference.serving.pool_parts import Part, ReplicaLink
from finetune.units import format_number

PART = 64  # rows that go to a replica together
TRIES = 2  # replicas that a part may end
STARTS = 3  # failures to start, one after another, before the server gives up
BACKOFF_SECONDS = (0.0, 1.0, 5.0)
CLOSE_SECONDS = 5.0
HALTED_SECONDS = 5.0  # between looks for replicas that are halted

Start = Callable[[int, socket.socket], "subprocess.Popen[bytes]"]
"""(number of the replica, its end of the connection) -> its process."""


class ReplicaPool:
    """start: starts the process of a replica. ran: called after each batch. restarted: called after each end of a replica.

    notify: called with sentences for people. failed: called once with the error for which the server has to end.
    Made on the event loop.
    """

    def __init__(
        self,
        start: Start,
        count: int,
        *,
        notify: Callable[[str], None],
        failed: Callable[[FinetuneError], None],
        ran: Callable[[BatchRun], None] = lambda run: None,
        restarted: Callable[[], None] = lambda: None,
    ) -> None:
        self._start, self._notify, self._failed = start, notify, failed
        self.ran, self.restarted = ran, restarted
        self._links = [ReplicaLink(number) for number in range(count)]
        self._waiting: deque[Part] = deque()
        self._ids = itertools.count(1)
        self._facts: ModelFacts | None = None
        self._closing = False
        self.ready = asyncio.Event()  # a replica has its model
        self._keepers = [asyncio.ensure_future(self._keep(link)) for link in self._links]
        self._keepers.append(asyncio.ensure_future(self._watch_halted()))

    @property
    def facts(self) -> ModelFacts:
        if self._facts is None:
            raise RequestFault(503, "loading", "the model is being loaded", headers={"Retry-After": "5"})
        return self._facts

    @property
    def replicas(self) -> tuple[int, int]:
        return sum(link.ready and not link.halted for link in self._links), len(self._links)

    @property
    def processes(self) -> list[int]:
        """Ids of the replicas' processes."""
        return [link.process.pid for link in self._links if link.process is not None]

    async def predict(self, rows: list[dict[str, Any]], *, top_k: int, threshold: float | None) -> list[Record]:
        """See Backend."""
        future = asyncio.get_running_loop().create_future
        parts = [
            Part(Ask(next(self._ids), rows[at : at + PART], top_k, threshold), len(rows[at : at + PART]), future())
            for at in range(0, len(rows), PART)
        ]
        self._submit(parts)
        try:
            answers = await asyncio.gather(*(part.records for part in parts))
        except asyncio.CancelledError:
            self._cancel(parts)
            raise
        return [{**record, "row": place} for place, record in enumerate(itertools.chain.from_iterable(answers))]

    async def write(self, sampling: Sampling) -> AsyncIterator[Piece]:
        """See Backend."""
        part = Part(
            Write(next(self._ids), sampling), 1, asyncio.get_running_loop().create_future(), pieces=asyncio.Queue()
        )
        assert part.pieces is not None
        self._submit([part])
        try:
            while True:
                piece = await part.pieces.get()
                yield piece
                if piece.finish_reason or piece.error:
                    return
        finally:
            self._cancel([part])

    async def close(self) -> None:
        """Close the connections, upon which replicas end; kill those that do not, and those that are still loading."""
        self._closing = True
        for link in self._links:
            if link.writer is not None:
                link.writer.close()
            if link.process is not None and not link.ready:
                link.process.kill()
        deadline = asyncio.get_running_loop().time() + CLOSE_SECONDS
        while asyncio.get_running_loop().time() < deadline and any(self._running()):
            await asyncio.sleep(0.02)
        self.kill()
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)

    def kill(self) -> None:
        """End every replica at once."""
        for process in self._running():
            process.kill()
            process.wait()

    def _running(self) -> list[subprocess.Popen[bytes]]:
        processes = [link.process for link in self._links if link.process is not None]
        return [process for process in processes if process.poll() is None]

    def _submit(self, parts: list[Part]) -> None:
        if self._closing:
            raise RequestFault(503, "draining", "the server is ending")
        self._waiting.extend(parts)
        self._dispatch()

    def _dispatch(self) -> None:
        """Waiting parts to replicas with room, those first that have the least to do."""
        while self._waiting:
            free = [link for link in self._links if link.takes(self._waiting[0])]
            if not free:
                return
            link, part = min(free, key=lambda link: link.load), self._waiting.popleft()
            part.link, part.tries = link, part.tries + 1
            link.parts[part.message.id] = part
            assert link.writer is not None
            send(link.writer, part.message)

    def _cancel(self, parts: list[Part]) -> None:
        for part in parts:
            if part.done:
                continue
            part.done = True
            link = part.link
            if link is not None and part.message.id in link.parts and link.writer is not None:
                del link.parts[part.message.id]
                send(link.writer, Cancel(part.message.id))
        self._waiting = deque(part for part in self._waiting if not part.done)  # their rows take memory
        self._dispatch()

    async def _watch_halted(self) -> None:
        """A replica that SIGSTOP halts gets no more requests until it goes on. Each halt is told once."""
        while True:
            await asyncio.sleep(HALTED_SECONDS)
            for link in self._links:
                before, link.halted = link.halted, link.process is not None and is_halted(link.process.pid)
                if link.halted and not before and link.process is not None:
                    waiting = f"; it holds {format_number(len(link.parts), 'request')}" if link.parts else ""
                    again = f"to continue it: kill -CONT {link.process.pid}"
                    self._notify(f"replica {link.number} is halted (SIGSTOP) and gets nothing to do{waiting}; {again}")
            self._dispatch()

    async def _keep(self, link: ReplicaLink) -> None:
        """Start a replica, read what it says, and start it again when it ends."""
        try:
            await self._run(link)
        except OSError as error:  # no process can be started, or no socket opened
            self._give_up(link, f"a replica cannot be started: {error}")
        except Exception as error:  # nobody waits for a keeper: its requests would never be answered
            self._give_up(link, f"what a replica says cannot be understood: {type(error).__name__}: {error}")

    def _give_up(self, link: ReplicaLink, what: str) -> None:
        self._closing, link.ready = True, False
        self._failed(TrainingFailed(what, where=f"replica {link.number}"))
        for part in link.parts.values():
            if not part.done:
                part.fail("failed", "the replica that worked on this request ended")
        link.parts = {}

    async def _run(self, link: ReplicaLink) -> None:
        while not self._closing:
            await asyncio.sleep(BACKOFF_SECONDS[min(link.failures, len(BACKOFF_SECONDS) - 1)])
            ours, theirs = socket.socketpair()
            try:
                link.process = self._start(link.number, theirs)
            finally:
                theirs.close()
            reader, link.writer = await asyncio.open_connection(sock=ours)
            while (message := await receive(reader)) is not None:
                self._take(link, message)
            link.writer.close()
            link.ready = False
            if not self._closing:
                await self._mourn(link)

    async def _mourn(self, link: ReplicaLink) -> None:
        """A replica ended by itself."""
        code = await asyncio.get_running_loop().run_in_executor(None, self._reap, link)
        link.failures += 1
        lost, link.parts = list(link.parts.values()), {}
        self.restarted()
        if link.failures >= STARTS or (self._facts is None and link.failures > 1):
            self._failed(
                TrainingFailed(
                    f"a replica ended {link.failures} times in a row without answering anything; it {describe_end(code)}",
                    where=f"replica {link.number}",
                    remedy="What it printed is above.",
                )
            )
            self._closing = True
        else:
            retried = f"; {format_number(len(lost), 'request')} tried again" if lost else ""
            self._notify(f"replica {link.number} {describe_end(code)}, and is started again{retried}")
        for part in reversed(lost):
            self._try_again(part)
        self._dispatch()

    def _reap(self, link: ReplicaLink) -> int:
        assert link.process is not None
        with suppress(subprocess.TimeoutExpired):
            return link.process.wait(CLOSE_SECONDS)
        link.process.kill()  # it has closed the connection, and does not end
        return link.process.wait()

    def _try_again(self, part: Part) -> None:
        if part.done:
            return
        part.link = None
        if part.tries >= TRIES or part.begun or self._closing:
            part.fail("failed", "the replica that worked on this request ended")
        else:
            self._waiting.appendleft(part)

    def _take(self, link: ReplicaLink, message: Message) -> None:
        """What a replica says."""
        if isinstance(message, Ready):
            self._facts, link.ready = message.facts, True
            self.ready.set()
        elif isinstance(message, Refused):
            self._closing = True
            assert isinstance(message.error, FinetuneError)
            self._failed(message.error)
        elif isinstance(message, BatchRun):
            link.failures = 0
            self.ran(message)
        elif isinstance(message, Answers):
            link.failures = 0
            part = link.parts.pop(message.id, None)
            if part is not None and not part.records.done():
                part.done = True
                part.records.set_result(message.records)
        elif isinstance(message, Written) and (part := link.parts.get(message.id)) is not None:
            assert part.pieces is not None
            part.pieces.put_nowait(message.piece)
            part.begun = True
            link.failures = 0
            if message.piece.finish_reason or message.piece.error:
                part.done = True
                del link.parts[message.id]
        self._dispatch()
