"""How rows name images: a path, or the bytes themselves as a data URI or base64 text. Nothing is downloaded."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from finetune.data.bad_rows import BadRow

SHOWN_CHARACTERS = 100  # of a value, in messages: base64 of a photograph has millions
DATA_URI = re.compile(r"data:(?P<type>[^,]{0,200}),", re.IGNORECASE)
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")
# How base64 of the usual formats begins: PNG, JPEG, GIF, WebP, TIFF (both byte orders).
BASE64_STARTS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "SUkqA", "TU0AK")
SHORTEST, LONGEST_PATH = 40, 4096  # characters of base64 text; of a path on Linux


def shorten(text: str) -> str:
    """At most 100 characters of a text, from both of its ends."""
    if len(text) <= SHOWN_CHARACTERS:
        return text
    return f"{text[: SHOWN_CHARACTERS - 33]}...{text[-30:]}"


def is_inline(text: str) -> bool:
    """Is this an image itself, as a data URI or as base64 text, rather than its path?"""
    if DATA_URI.match(text):
        return True
    likely = text.startswith(BASE64_STARTS) and len(text) >= SHORTEST
    return (likely or len(text) > LONGEST_PATH) and BASE64.fullmatch(text) is not None


def resolve_image(value: Any, base: Path) -> Any:
    """The value of an image column of a text file: relative paths are resolved against `base`, the rest stays."""
    if isinstance(value, dict) and isinstance(value.get("path"), str) and not value.get("bytes"):
        return {**value, "path": resolve_image(value["path"], base)}
    if not isinstance(value, str) or not value or is_inline(value) or ADDRESS.match(value):
        return value
    return str(base / os.path.expanduser(value))  # noqa: PTH111 - pathlib raises RuntimeError


def named_file(value: Any) -> str | None:
    """The path that a value names, or None if it holds the image itself, or is no image."""
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None else None
    return value if isinstance(value, str) and value and not is_inline(value) and not ADDRESS.match(value) else None


def files_state(values: Iterable[Any]) -> str:
    """Digest of path, size, times and inode of the files that values of an image column name: what they were at a moment.

    A file that is put in place, changed, replaced or removed changes it. No file is opened.
    """
    digest = hashlib.blake2b(digest_size=16)
    for value in values:
        name = named_file(value)
        if name is None:
            continue
        try:
            stat = os.stat(name)  # noqa: PTH116 - Path takes three times as long, for each image
            state = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
        except (OSError, ValueError):
            state = "missing"
        digest.update(f"{len(name)} {name} {state}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def image_bytes(text: str) -> bytes | None:
    """The bytes of a data URI or of base64 text; None for a path.

    Raises: BadRow for an address, such as https://..., and for text that is not base64.
    """
    if not is_inline(text):
        if ADDRESS.match(text):
            raise BadRow(f"the image is a URL, {shorten(text)}; download it and use its path")
        return None
    uri = DATA_URI.match(text)
    payload = text[uri.end() :] if uri else text
    if uri and "base64" not in uri["type"].lower().split(";"):
        return unquote_to_bytes(payload)
    return base64_bytes(payload)


def base64_bytes(text: str) -> bytes:
    """Decodes base64, also with URL-safe letters, line breaks, or without padding. Raises: BadRow."""
    raw = unquote_to_bytes(text) if "%" in text else text.encode("utf-8", "replace")
    letters = b"".join(raw.split()).translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
    try:
        return base64.b64decode(letters + b"=" * (-len(letters) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRow(f"an image is not valid base64: {error}: {shorten(text)}") from error
