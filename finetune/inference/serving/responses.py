"""Answers: JSON, and streams of server-sent events that end when the client is gone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, suppress
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from finetune.inference.serving.guard import ClientGone


def json_text(content: Any) -> bytes:
    """JSON in UTF-8; half of a surrogate pair, which is not a character, becomes an escape."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    try:
        return text.encode()
    except UnicodeEncodeError:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def json_response(content: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON as `finetune predict` writes it."""
    return Response(json_text(content), status_code=status, media_type="application/json", headers=headers)


class EventStream(Response):
    """Each value as an event "data: <json>", then "data: [DONE]".

    held: what the request holds; it is let go at the end, or when the client is gone. Raises: ClientGone.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncIterator[Any], held: AsyncExitStack, *, headers: dict[str, str] | None = None
    ) -> None:
        self._events, self._held = events, held
        super().__init__(headers=headers)
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(send))
        listening = asyncio.ensure_future(until_disconnected(receive))
        try:
            await asyncio.wait({sending, listening}, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                raise ClientGone
            sending.result()
        finally:
            for task in (sending, listening):
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task
            await self._held.aclose()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with aclosing(self._events) as events:  # type: ignore[type-var]
            async for event in events:
                body = b"data: " + json_text(event) + b"\n\n"
                await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})


async def until_disconnected(receive: Receive) -> None:
    """Returns when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
