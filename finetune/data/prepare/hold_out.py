"""Validation rows held out by what they say, not by where they stand: the same rows whatever is added or reordered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.data.prepare.cache import digest, publish
from finetune.data.table import Row
from finetune.errors import UserError

if TYPE_CHECKING:
    import numpy as np

VERSION = 1
HEAD = 1 << 16  # bytes of an image file that, with its size, stand for its content


def row_hash(row: Row, roles: Sequence[str], seed: int) -> int:
    """0 .. 2**64 - 1 from a row's content: blake2b of its canonical JSON and the seed; the same on every machine.

    Only the task's roles count, so that a column with running numbers does not tell duplicates apart; a row with none
    of them counts whole. 1, "1" and 1.0 are the same: a set may come as csv or as JSON.
    """
    known = {role: row[role] for role in roles if row.get(role) is not None}
    content = {name: _canonical(value, name) for name, value in (known or dict(row)).items()}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    key = seed.to_bytes(16, "little")
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=key).digest(), "little")


def _canonical(value: Any, role: str = "") -> Any:
    """JSON without a machine's or a format's accidents: numbers as text, bytes and image files as digests."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, str):
        return _file_digest(value) if role == "image" else value
    if isinstance(value, dict):
        if isinstance(value.get("bytes"), bytes):  # an image of a parquet file; its path names nothing
            return _canonical(value["bytes"])
        return {str(name): _canonical(item, role) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item, role) for item in value]
    if isinstance(value, (bytes, bytearray)):
        return hashlib.blake2b(value, digest_size=16).hexdigest()
    return str(value)


def _file_digest(path: str) -> str:
    """Content, not name: the same photograph under two names is one row. A file that is not there is told later."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(HEAD)
        return hashlib.blake2b(head, digest_size=16).hexdigest() + str(Path(path).stat().st_size)
    except OSError:
        return path


def hold_out(
    rows: Iterable[Row], count: int, fingerprint: str, *, fraction: float, seed: int, roles: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """(training ids, validation ids), ascending int64: a row is held out if its hash lies below the fraction.

    Duplicates share a hash, hence a side. Both sides get at least one row: if the fraction chose none (or all), the
    rows with the smallest (largest) hash change sides. Kept in the cache.
    Raises: UserError if there are not two different rows.
    """
    import numpy as np

    def write(folder: Path) -> None:
        hashes = np.fromiter(_hashes(rows, roles, seed), np.uint64, count)
        (folder / "hashes.u64").write_bytes(hashes.tobytes())

    folder = publish("splits", digest("split", VERSION, fingerprint, seed, list(roles)), write)
    hashes = np.frombuffer((folder / "hashes.u64").read_bytes(), np.uint64)
    held = choose(hashes, fraction)
    return np.flatnonzero(~held), np.flatnonzero(held)


def _hashes(rows: Iterable[Row], roles: Sequence[str], seed: int) -> Iterator[int]:
    return (row_hash(row, roles, seed) for row in rows)


def choose(hashes: np.ndarray, fraction: float) -> np.ndarray:
    """Which rows are held out, bool [rows]."""
    import numpy as np

    if not len(hashes) or hashes.min() == hashes.max():
        raise UserError(
            f"no validation rows can be held out of {len(hashes)} row{'s' if len(hashes) != 1 else ''}, all alike",
            where="data.validation_fraction",
            remedy="Give more rows, a file under data.validation, or validation_fraction: 0.",
        )
    held = hashes < np.uint64(min(int(fraction * 2.0**64), 2**64 - 1))
    if not held.any():
        held = hashes == hashes.min()
    elif held.all():
        held = hashes != hashes.max()
    return held
