"""The file of a chunk's answers: a line that says what it answers, and what it holds, and then a line for each example.

{"digest": of the examples that were answered, "content": of all that follows}

A file is published as a whole, so that a crash leaves none or all of it. What happens to it afterwards (a fault of the disk,
an editor, files that were exchanged) is found by the two digests before its lines become those of the output.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from finetune.recipe.json_file import parse_json


def pack_answers(digest: str, lines: Sequence[str]) -> bytes:
    """The content of a file. digest: of the examples. lines: JSON, without their ends."""
    body = "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")
    return json.dumps({"digest": digest, "content": _digest(body)}).encode() + b"\n" + body


def answered_examples(path: Path) -> str | None:
    """The digest of the examples that a file answers; "" if the file is not as it was written, None if there is none."""
    with suppress(ValueError, TypeError, KeyError, OSError):
        head, _, body = path.read_bytes().partition(b"\n")
        about = parse_json(head)
        if about["content"] == _digest(body):
            return str(about["digest"])
    return "" if path.exists() else None


def read_answers(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file that answered_examples() knows. Raises: OSError, ValueError."""
    with path.open(encoding="utf-8") as file:
        next(file)
        for text in file:
            yield parse_json(text)


def _digest(body: bytes) -> str:
    return hashlib.blake2b(body, digest_size=16).hexdigest()
