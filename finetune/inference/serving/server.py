"""The server: uvicorn on a socket that is bound already, until a signal; then what is accepted is answered, and no more.

The first SIGTERM or Ctrl-C drains: new requests get 503, and the server ends when nothing is in flight, or after
limits.drain_seconds. The second one ends it at once. Both are logged, and how many requests were answered.
"""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

import uvicorn

from finetune.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, FinetuneError, UserError
from finetune.inference.serving.app import Service, build_app
from finetune.inference.serving.backend import Backend
from finetune.inference.serving.guard import Guard
from finetune.inference.serving.protocol import timed_protocol
from finetune.units import format_number

HEAD_BYTES = 65_536
BACKLOG = 2048
POLL_SECONDS = 0.02


class _Server(uvicorn.Server):
    """Signals are handled by `Serving`."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens soon. port: 0 for a free one. Raises: UserError if it is taken, or not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(BACKLOG)  # who connects before the server is ready waits
    except (OSError, OverflowError) as error:
        sock.close()
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        what = "another program listens there" if taken else f"cannot listen there: {error}"
        raise UserError(what, where=f"{host}:{port}", remedy="Choose another --host or --port.") from None
    return sock


class Serving:
    """One run of the server. notify: called with sentences for people.

    open_backend: called on the event loop with what to call when the server has to end because of an error.
    """

    def __init__(
        self,
        sock: socket.socket,
        service: Callable[[Backend], Service],
        open_backend: Callable[[Callable[[FinetuneError], None]], Awaitable[Backend]],
        notify: Callable[[str], None],
    ) -> None:
        self._sock, self._service, self._open_backend, self._notify = sock, service, open_backend, notify
        self._signals: list[str] = []
        self._failure: FinetuneError | None = None
        self._ending = asyncio.Event()
        self._at_once = asyncio.Event()

    async def run(self) -> int:
        """Until a signal. Returns an exit code: 0 if everything that was accepted has been answered.

        Raises: the error for which the server had to end.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        backend = await self._open_backend(self._fail)
        service = self._service(backend)
        app, limits = build_app(service), service.limits
        server = _Server(
            uvicorn.Config(
                app,
                http=timed_protocol(limits),
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=int(limits.keep_alive_seconds),
                timeout_graceful_shutdown=1,
                h11_max_incomplete_event_size=HEAD_BYTES,
            )
        )
        serving = asyncio.ensure_future(server.serve([self._sock]))
        try:
            await asyncio.wait(
                {serving, asyncio.ensure_future(self._ending.wait())}, return_when=asyncio.FIRST_COMPLETED
            )
            service.gate.draining = True
            code = EXIT_FAILED if self._failure else await self._drain(app, limits.drain_seconds)
        finally:
            server.should_exit = server.force_exit = True
            if self._at_once.is_set():
                serving.cancel()
            with suppress(asyncio.CancelledError, TimeoutError):
                await asyncio.wait_for(serving, 3)
            await backend.close()
        if self._failure is not None:
            raise self._failure
        return code

    def _signalled(self, number: int) -> None:
        self._signals.append(signal.Signals(number).name)
        self._ending.set()
        if len(self._signals) > 1:
            self._at_once.set()

    def _fail(self, failure: FinetuneError) -> None:
        if self._failure is None:
            self._failure = failure
        self._ending.set()

    async def _drain(self, app: Guard, seconds: float) -> int:
        """Until nothing is in flight."""
        accepted, before = app.in_flight, app.answered
        name = self._signals[0] if self._signals else "the server ends"
        if accepted:
            waiting = format_number(accepted, "request")
            self._notify(f"{name}: draining {waiting}, at most {seconds:g} seconds (again: ends at once)")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while app.in_flight and loop.time() < deadline and not self._at_once.is_set() and not self._failure:
            await asyncio.sleep(POLL_SECONDS)
        answered = app.answered - before
        if app.in_flight:
            left = format_number(app.in_flight, "request")
            self._notify(f"ended with {left} unanswered; {answered:,} of {accepted:,} answered while draining")
            return EXIT_INTERRUPTED if self._at_once.is_set() else EXIT_FAILED
        if not accepted:
            self._notify(f"{name}: ended; no request was in flight")
        elif answered < accepted:
            gone = format_number(accepted - answered, "client")
            self._notify(f"ended: {answered:,} of {accepted:,} requests answered; {gone} closed the connection before")
        else:
            self._notify(f"ended: {format_number(answered, 'request')} answered")
        return EXIT_DONE
