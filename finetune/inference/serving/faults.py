"""What is wrong with a request, as its status and its JSON body; the same shape at every endpoint, which is OpenAI's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class RequestFault(Exception):
    """A request that gets no answer. kind: one word for programs. message: one sentence for people. param: the key or
    header that is at fault.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.param = status, kind, message, param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """{"error": {"message", "type", "param", "code"}}."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.kind}}

    @property
    def type(self) -> str:
        return TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")


def malformed(message: str, *, param: str | None = None, kind: str = "malformed") -> RequestFault:
    """400."""
    return RequestFault(400, kind, message, param=param)
