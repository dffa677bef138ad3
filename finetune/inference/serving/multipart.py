"""Reads a multipart/form-data body that is in memory whole, so its size is bounded already (RFC 7578)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from finetune.inference.serving.faults import malformed

BOUNDARY = re.compile(r'boundary="?(?P<text>[^";,]{1,70})"?', re.IGNORECASE)
PARAMETER = re.compile(r';\s*(?P<name>[a-z]+)="(?P<value>(?:[^"\\]|\\.)*)"', re.IGNORECASE)
HEAD_BYTES = 4096  # of one part


@dataclass(frozen=True)
class Part:
    """name: of the form's field. filename: None for a field that is no file."""

    name: str
    filename: str | None
    content: bytes


def parse_multipart(body: bytes, content_type: str, *, most: int) -> list[Part]:
    """The parts, in order. Raises: RequestFault (400) for a body that is cut or has more than `most` parts."""
    found = BOUNDARY.search(content_type)
    if not found:
        raise malformed("the content type multipart/form-data has no boundary", param="content-type")
    mark = b"--" + found["text"].encode("latin-1", "replace")
    parts = body.count(b"\r\n" + mark) + body.startswith(mark) - 1  # the last one is the end
    if parts > most:
        raise malformed(f"the multipart body has {parts:,} parts, more than {most:,}")
    pieces = (b"\r\n" + body).split(b"\r\n" + mark)
    if len(pieces) < 2 or not pieces[-1].startswith(b"--"):
        raise malformed("the multipart body has no end: it is cut, or its boundary is another one")
    return [_part(piece) for piece in pieces[1:-1]]


def _part(piece: bytes) -> Part:
    head, gap, content = piece.partition(b"\r\n\r\n")
    if not gap or len(head) > HEAD_BYTES:
        raise malformed("a part of the multipart body has no head that ends, or one that is too long")
    for line in head.decode("utf-8", "replace").split("\r\n"):
        key, _, value = line.partition(":")
        if key.strip().lower() == "content-disposition":
            given = {match["name"].lower(): match["value"] for match in PARAMETER.finditer(value)}
            return Part(given.get("name", ""), given.get("filename"), content)
    raise malformed("a part of the multipart body has no Content-Disposition")
