"""What a request, a connection and all of them together may take of the server."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """body_bytes: of a request. bodies_bytes: of all requests that are read or answered now. rows: of a request.

    characters: of the texts of a row. values: of a row, inside of its lists and objects too. pixels: of an image. waiting:
    rows that are accepted and not yet answered, over all requests. writing: the same for requests that generate text.
    connections: open at once.
    header_seconds: for a request's head to arrive. body_seconds: for its body. keep_alive_seconds: that an idle connection
    stays open. write_seconds: that a client may leave its answer unread. answer_seconds: from the end of the body to the
    last row's answer. drain_seconds: for what is accepted, after SIGTERM.
    """

    body_bytes: int = 32 * MIB
    bodies_bytes: int = 1024 * MIB
    rows: int = 1024
    characters: int = 500_000
    values: int = 100_000
    pixels: int = 40_000_000
    waiting: int = 4096
    writing: int = 256
    connections: int = 1024
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    keep_alive_seconds: float = 15.0
    write_seconds: float = 30.0
    answer_seconds: float = 300.0
    drain_seconds: float = 30.0
