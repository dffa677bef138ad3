"""uvicorn's HTTP protocol with the timeouts that it lacks: slow heads, and clients that leave their answer unread."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from finetune.inference.serving.limits import Limits


class TimedProtocol(H11Protocol):
    """limits: set by `timed_protocol`."""

    limits = Limits()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            transport.abort()
            return
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch_head()
        self._unwatch_write()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._watch_head()
        else:
            self._unwatch_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():  # flushing what the client may never read
            self.pause_writing()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.limits.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._unwatch_write()
        super().resume_writing()

    def _watch_head(self) -> None:
        """The head of a request has so much time from its first byte, or from the connection's start."""
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.limits.header_seconds, self.transport.abort)

    def _unwatch_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _unwatch_write(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None


def timed_protocol(limits: Limits) -> type[TimedProtocol]:
    """The protocol with these limits."""
    return type("TimedProtocol", (TimedProtocol,), {"limits": limits})
