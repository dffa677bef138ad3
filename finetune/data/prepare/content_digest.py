"""The digest of a table's content: equal rows, equal digest, wherever the files lie and whenever they were written."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from finetune.data.table import Table


def content_digest(table: Table) -> str:
    """32 hex digits over every row, as the task reads it. Bytes (images inside a table) count by their own digest; images
    that rows name by path count by that path.
    """
    digest = hashlib.blake2b(digest_size=16)
    for row in table:
        text = json.dumps(dict(row), sort_keys=True, ensure_ascii=True, default=_plain)
        digest.update(hashlib.blake2b(text.encode(), digest_size=16).digest())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray)):
        return hashlib.blake2b(value, digest_size=16).hexdigest()
    return value.tolist() if hasattr(value, "tolist") else str(value)
