"""What an endpoint takes in: the body, within its limits, and a place among the requests that are being answered."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from starlette.requests import Request
from starlette.types import Receive

from finetune.inference.serving.faults import RequestFault, malformed
from finetune.inference.serving.guard import ClientGone
from finetune.inference.serving.limits import MIB, Limits
from finetune.inference.serving.responses import until_disconnected

Result = TypeVar("Result")

LINGER_SECONDS, LINGER_BYTES = 2.0, 64 * MIB  # of a body that is too large, read so that its sender gets the answer
VALUE_BYTES = 100  # about what a value of a row takes in memory besides its text
REMEMBERED_SECONDS = 10.0
LONGEST_WAIT = 60  # seconds that a client is asked to wait


async def read_body(request: Request, limits: Limits, take: Callable[[int], None]) -> bytes:
    """The whole body. take: see Bodies. Raises: RequestFault (400, 408, 413 or 429), ClientGone."""
    stated = request.headers.get("content-length", "")
    if stated and not stated.isdecimal():
        raise malformed("Content-Length is not a number", param="content-length")
    if stated and int(stated) > limits.body_bytes:
        await _linger(request.receive)
        raise too_large(limits)
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                take(len(message.get("body", b"")))
                body += message.get("body", b"")
                if len(body) > limits.body_bytes:
                    await _linger(request.receive)
                    raise too_large(limits)
                if not message.get("more_body"):
                    return bytes(body)
    except TimeoutError:
        raise RequestFault(
            408,
            "slow_body",
            f"the body did not arrive within {limits.body_seconds:g} seconds",
            headers={"Connection": "close"},
        ) from None


def require_json(request: Request) -> None:
    """Raises: RequestFault (415). A form of another site's page could send its body under other types unasked."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        message = f"the content type is {kind[:100] or '(none)'}, not application/json"
        raise RequestFault(415, "content_type", message, param="content-type")


def too_large(limits: Limits) -> RequestFault:
    """413."""
    message = f"the body is larger than {limits.body_bytes / MIB:g} MiB"
    return RequestFault(413, "body_too_large", message, headers={"Connection": "close"})


async def _linger(receive: Receive) -> None:
    """Read on for a moment: a connection that is closed with bytes unread loses the answer as well."""
    seen = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while seen < LINGER_BYTES:
                message = await receive()
                seen += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    return


async def while_connected(request: Request, work: Awaitable[Result], seconds: float) -> Result:
    """The result of `work`, which is cancelled when the client disconnects, or after so many seconds.

    Raises: ClientGone; RequestFault (504).
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(until_disconnected(request.receive))
    try:
        await asyncio.wait({task, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ClientGone
        raise RequestFault(504, "slow_answer", f"there was no answer within {seconds:g} seconds")
    finally:
        for one in (task, gone):
            one.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await one


class Bodies:
    """Bytes of the bodies that are in memory, and of the values made of them: the number of rows alone does not bound them,
    since a row may be an image or a long list.
    """

    def __init__(self, most: int) -> None:
        self.most, self.count = most, 0

    @contextmanager
    def hold(self) -> Iterator[Callable[[int], None]]:
        """Gives a function that counts so many bytes more, until the context ends; it raises RequestFault (429) if other
        requests have taken the room.
        """
        held = 0

        def take(size: int) -> None:
            nonlocal held
            if self.count > held and self.count + size > self.most:
                raise RequestFault(
                    429,
                    "busy",
                    f"the requests that are being answered have {self.count / MIB:.0f} MiB",
                    headers={"Retry-After": "2", "Connection": "close"},
                )
            self.count, held = self.count + size, held + size

        try:
            yield take
        finally:
            self.count -= held


class Admission:
    """A bounded number of rows (or texts) that are accepted and not yet answered. name: of what is counted."""

    def __init__(self, name: str, most: int) -> None:
        self.name, self.most, self.count = name, most, 0
        self._answered: deque[tuple[float, int]] = deque()

    @contextmanager
    def hold(self, amount: int) -> Iterator[None]:
        """Count them for as long as the context is open. Raises: RequestFault (429) if there is no room.

        A request that is larger than all the room there is comes in while nothing else waits.
        """
        if self.count and self.count + amount > self.most:
            raise RequestFault(
                429,
                "busy",
                f"{self.count:,} {self.name} are waiting, and at most {self.most:,} may",
                headers={"Retry-After": str(self.wait_seconds(amount))},
            )
        self.count += amount
        try:
            yield
        finally:
            self.count -= amount
            self._answered.append((time.monotonic(), amount))
            self._forget()

    def wait_seconds(self, amount: int) -> int:
        """When there is room, at the speed of the last seconds; from 1 to 60."""
        self._forget()
        done = sum(number for _, number in self._answered)
        if not done:
            return LONGEST_WAIT // 6
        excess = self.count + amount - self.most
        return min(LONGEST_WAIT, max(1, math.ceil(excess * REMEMBERED_SECONDS / done)))

    def _forget(self) -> None:
        now = time.monotonic()
        while self._answered and now - self._answered[0][0] > REMEMBERED_SECONDS:
            self._answered.popleft()
