"""A replica's side of the connection to the front process: requests come in, answers go out, as they are ready."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

from finetune.errors import FinetuneError
from finetune.inference.serving.backend import Backend
from finetune.inference.serving.faults import RequestFault
from finetune.inference.serving.messages import (
    Answers,
    Ask,
    BatchRun,
    Cancel,
    Piece,
    Ready,
    Refused,
    Write,
    Written,
    receive,
    send,
)

Open = Callable[[Callable[[BatchRun], None], Callable[[BaseException], None]], Awaitable[Backend]]
"""(ran, broken) -> the backend, on the event loop's thread."""


async def serve_link(sock: socket.socket, open_backend: Open) -> int:
    """Until the front process closes the connection, or the model cannot answer any more. Returns an exit code.

    An error of the user's, such as a model that cannot be loaded, is sent to the front process.
    """
    reader, writer = await asyncio.open_connection(sock=sock)
    end: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def broken(error: BaseException) -> None:
        if not end.done():
            end.set_result(1)

    try:
        backend = await open_backend(lambda run: send(writer, run), broken)
    except FinetuneError as error:
        send(writer, Refused(error))
        await writer.drain()
        return error.exit_code
    send(writer, Ready(backend.facts))
    requests = asyncio.ensure_future(_Requests(backend, reader, writer).serve())
    waited: set[asyncio.Future[Any]] = {requests, end}
    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
    code = end.result() if end.done() else 0
    requests.cancel()
    await asyncio.gather(requests, return_exceptions=True)
    if code == 0:  # a model that broke may never end
        await backend.close()
    writer.close()
    return code


class _Requests:
    """The requests of the front process that are being answered."""

    def __init__(self, backend: Backend, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._backend, self._reader, self._writer = backend, reader, writer
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def serve(self) -> None:
        try:
            while (message := await receive(self._reader)) is not None:
                if isinstance(message, Ask):
                    self._start(message.id, self._answer(message))
                elif isinstance(message, Write):
                    self._start(message.id, self._write(message))
                elif isinstance(message, Cancel) and message.id in self._tasks:
                    self._tasks[message.id].cancel()
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _start(self, id: int, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks[id] = task  # type: ignore[assignment]
        task.add_done_callback(lambda done: self._tasks.pop(id, None))

    async def _answer(self, message: Ask) -> None:
        try:
            records = await self._backend.predict(message.rows, top_k=message.top_k, threshold=message.threshold)
        except Exception as error:  # a bug in a task: the request learns of it, and nobody else
            failure = {"error": {"kind": "failed", "message": f"{type(error).__name__}: {error}"[:500]}}
            records = [{"row": place, **failure} for place in range(len(message.rows))]
        send(self._writer, Answers(message.id, records))
        await self._writer.drain()

    async def _write(self, message: Write) -> None:
        try:
            async with aclosing(self._backend.write(message.sampling)) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    send(self._writer, Written(message.id, piece))
                    await self._writer.drain()
        except RequestFault as fault:
            send(self._writer, Written(message.id, Piece(error=(fault.kind, fault.message))))
        except Exception as error:
            failure = Piece(error=("failed", f"{type(error).__name__}: {error}"[:500]))
            send(self._writer, Written(message.id, failure))
