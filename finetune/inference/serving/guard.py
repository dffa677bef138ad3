"""Guard: what every request passes before its endpoint sees it, and what every answer gets.

Host and Origin (a page of another site that a browser has open must not reach a server on this machine), the API key,
draining, faults as JSON, headers that forbid the browser everything, and the count and the time of each request.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finetune.inference.serving.faults import RequestFault
from finetune.inference.serving.metrics import Metrics

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
SHELF = {  # of every answer; pages have a policy of their own
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclass
class Gate:
    """Who may ask. key: that requests must have, "" for none. hosts: names that the Host header may have; empty for any.

    open_paths: that need no key. always_paths: that are answered while the server drains. draining: set by the server.
    """

    key: str = ""
    hosts: Collection[str] = ()
    open_paths: Collection[str] = ("/health",)
    always_paths: Collection[str] = ("/health", "/metrics")
    draining: bool = False
    drain_seconds: float = 30.0

    def check(self, path: str, headers: dict[str, str], server: Sequence[Any] | None) -> None:
        """Raises: RequestFault (403, 401 or 503)."""
        host = headers.get("host", "")
        if self.hosts and host_name(host) not in self.hosts:
            raise RequestFault(
                403, "host", f"this server is not called {host_name(host)[:100]!r} (Host header)", param="host"
            )
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            raise RequestFault(403, "origin", "pages of other sites may not use this server", param="origin")
        if self.key and path not in self.open_paths and not self._has_key(headers):
            raise RequestFault(
                401,
                "api_key",
                "the API key is missing or wrong: send Authorization: Bearer KEY",
                param="authorization",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if self.draining and path not in self.always_paths:
            raise RequestFault(
                503, "draining", "the server is ending", headers={"Retry-After": "5", "Connection": "close"}
            )

    def _has_key(self, headers: dict[str, str]) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            given = headers.get("x-api-key", "")
        return hmac.compare_digest(given.strip().encode("utf-8", "replace"), self.key.encode())


def host_name(host: str) -> str:
    """The name in a Host header, without the port: "[::1]:8000" -> "::1"."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().rstrip(".")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server on this address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


@dataclass
class Guard:
    """ASGI application around another one. report: called with bugs and their tracebacks. in_flight: requests now.

    answered: requests so far that were accepted before the server drained and got an answer, of any status.
    """

    app: ASGIApp
    gate: Gate
    metrics: Metrics
    endpoints: Collection[str]
    report: Callable[[BaseException], None]
    in_flight: int = field(default=0)
    answered: int = field(default=0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0
        endpoint = scope["path"] if scope["path"] in self.endpoints else "other"

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": _with_shelf(message["headers"])}
            await send(message)

        self.in_flight += 1
        accepted, gone = not self.gate.draining, True
        try:
            gone = not await self._run(scope, receive, send_guarded, lambda: status)
        finally:
            self.in_flight -= 1
            self.answered += accepted and bool(status) and not gone
            self.metrics.requests.add(endpoint=endpoint, status=str(status or "cut"))
            self.metrics.seconds.add(time.perf_counter() - started, endpoint=endpoint)

    async def _run(self, scope: Scope, receive: Receive, send: Send, status: Callable[[], int]) -> bool:
        """Whether the client was there to the end."""
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        try:
            self.gate.check(scope["path"], headers, scope.get("server"))
            await self.app(scope, receive, send)
        except RequestFault as fault:
            self.metrics.errors.add(kind=fault.kind)
            if not status():
                await send_fault(send, fault)
        except ClientGone:
            self.metrics.errors.add(kind="disconnected")
            return False
        except Exception as error:
            self.metrics.errors.add(kind="bug")
            self.report(error)
            if not status():
                await send_fault(send, RequestFault(500, "bug", "a bug in the server; its log says more"))
            else:
                raise
        return True


class ClientGone(Exception):
    """The client closed the connection; nobody is there to be answered."""


async def send_fault(send: Send, fault: RequestFault) -> None:
    """The fault as an answer in JSON."""
    body = json.dumps(fault.body(), ensure_ascii=False).encode("utf-8", "replace")
    headers = {"content-type": "application/json", "content-length": str(len(body)), **fault.headers}
    raw = [(key.lower().encode("latin-1"), value.encode("latin-1")) for key, value in headers.items()]
    await send({"type": "http.response.start", "status": fault.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _with_shelf(headers: Any) -> list[tuple[bytes, bytes]]:
    given = {key.lower() for key, _ in headers}
    added = [(key.encode(), value.encode()) for key, value in SHELF.items() if key.encode() not in given]
    return [*headers, *added]
