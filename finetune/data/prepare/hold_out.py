"""Holds out validation rows by a hash of their content, so that reordering or adding rows does not move other rows."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from finetune.data.prepare.cache import digest, publish
from finetune.data.prepare.file_digest import open_regular
from finetune.data.prepare.pool import Chunk, map_chunks
from finetune.data.prepare.progress import Meter, current_stage
from finetune.data.table import Row, Table, describe_table, read_rows
from finetune.errors import UserError
from finetune.recipe.roles import IMAGES

if TYPE_CHECKING:
    import numpy as np

VERSION = 1
ROWS = 2_000  # hashed together
SHOWN = 10  # classes named in a note
HEAD_BYTES = 1 << 16  # an image file is identified by its size and this many first bytes


def row_hash(row: Row, roles: Sequence[str], seed: int) -> int:
    """Hash of a row's content, 0..2**64 - 1: blake2b of its canonical JSON, keyed by the seed. The same everywhere.

    Only the roles of the task are hashed, so that duplicates with different running numbers have the same hash. A row
    with none of the roles is hashed as a whole. 1, "1" and 1.0 are equal: the same data may come as CSV or JSON.
    """
    in_roles = {role: row[role] for role in roles if row.get(role) is not None}
    content = {name: _canonical(value, name) for name, value in (in_roles or dict(row)).items()}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    key = seed.to_bytes(16, "little")
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=key).digest(), "little")


def _canonical(value: Any, role: str = "") -> Any:
    """A JSON value that is the same for all file formats: numbers become text, bytes and image files digests."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, str):
        return _file_digest(value) if role in IMAGES else value
    if isinstance(value, dict):
        if isinstance(value.get("bytes"), bytes):  # an image in a parquet file; its path has no meaning
            return _canonical(value["bytes"])
        return {str(name): _canonical(item, role) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item, role) for item in value]
    if isinstance(value, (bytes, bytearray)):
        return hashlib.blake2b(value, digest_size=16).hexdigest()
    return str(value)


def _file_digest(path: str) -> str:
    """Digest of a file's content. For a missing file, the path: the error is reported when it is read."""
    try:
        with open_regular(path) as file:
            head = file.read(HEAD_BYTES)
        return hashlib.blake2b(head, digest_size=16).hexdigest() + str(Path(path).stat().st_size)
    except (OSError, ValueError):  # such as a path with a null byte
        return path


class RowClasses(Protocol):
    """The classes of each row, in order of their ids. identity: what they depend on besides the rows."""

    @property
    def identity(self) -> list[Any]: ...

    def __iter__(self) -> Iterator[Sequence[str]]: ...


@dataclass(frozen=True)
class Split:
    """train, held: ids of rows, ascending, int64. moved: how many rows changed sides for the sake of classes, which are
    `classes`.
    """

    train: np.ndarray
    held: np.ndarray
    moved: int = 0
    classes: tuple[str, ...] = ()

    def describe(self) -> str:
        """A line that tells what was moved."""
        rows = "1 row" if self.moved == 1 else f"{self.moved:,} rows"
        names = ", ".join(self.classes[:SHOWN]) + (", ..." if len(self.classes) > SHOWN else "")
        if not names:  # nothing was held out, and now something is
            return f"validation: {rows} held out: the smallest hash among the rows whose classes have other rows"
        count = "the class" if len(self.classes) == 1 else f"{len(self.classes):,} classes:"
        return f"validation: {rows} went back to train, which had no other row of {count} {names}"


def hold_out(
    rows: Table,
    fingerprint: str,
    *,
    fraction: float,
    seed: int,
    roles: Sequence[str],
    classes: RowClasses | None = None,
) -> Split:
    """Split the rows: one is held out if its hash is below `fraction` of the range.

    Duplicates have the same hash, so they are all in one split. Both splits get at least one row: if no row (or every
    row) is below the threshold, the rows with the smallest (largest) hash are moved. A class that would be left without a
    training row gets back the row with its largest hash. Hashes and moves are cached.

    fingerprint: identifies the content of the rows. roles: the roles of the task.
    classes: those of each row, for tasks that have classes.
    Raises: UserError if there are no two different rows, or if every row is the only one of its class.
    """
    import numpy as np

    hashes = row_hashes(rows, fingerprint, roles, seed)
    held = choose(hashes, fraction)
    if classes is None:
        return Split(np.flatnonzero(~held), np.flatnonzero(held))

    def write_kept(folder: Path) -> None:
        kept, names = keep_classes(hashes, held, classes)
        (folder / "held.i64").write_bytes(np.flatnonzero(kept).astype("<i8").tobytes())
        moved = int((kept != held).sum())
        (folder / "moved.json").write_text(json.dumps({"moved": moved, "classes": names}), "utf-8")

    key = digest("kept classes", VERSION, fingerprint, seed, list(roles), fraction, classes.identity)
    folder = publish("splits", key, write_kept, about=describe_table(rows))
    ids = np.frombuffer((folder / "held.i64").read_bytes(), "<i8").astype(np.int64)
    facts = json.loads((folder / "moved.json").read_text("utf-8"))
    train = np.ones(len(rows), bool)
    train[ids] = False
    return Split(np.flatnonzero(train), ids, facts["moved"], tuple(facts["classes"]))


def row_hashes(rows: Table, fingerprint: str, roles: Sequence[str], seed: int = 0) -> np.ndarray:
    """`row_hash` of each row, uint64 [rows]; cached. fingerprint: identifies the content of the rows."""
    import numpy as np

    def write(folder: Path) -> None:
        (folder / "hashes.u64").write_bytes(_hashes(rows, roles, seed))

    key = digest("split", VERSION, fingerprint, seed, list(roles))
    folder = publish("splits", key, write, about=describe_table(rows))
    return np.frombuffer((folder / "hashes.u64").read_bytes(), np.uint64)


class HashJob:
    """Hashes chunks of a table's rows; see pool.Job."""

    def __init__(self, table: Table, roles: Sequence[str], seed: int) -> None:
        self.table, self.roles, self.seed = table, tuple(roles), seed

    def run(self, chunk: Chunk) -> bytes:
        """The hashes of rows [first, last), uint64."""
        return array("Q", (row_hash(row, self.roles, self.seed) for row in read_rows(self.table, *chunk))).tobytes()

    def describe(self, chunk: Chunk) -> str:
        """The place of the first row."""
        return self.table.place(chunk[0])


def _hashes(table: Table, roles: Sequence[str], seed: int) -> bytes:
    count = len(table)
    meter = Meter(table.name, count, doing="hashing")
    chunks = [(first, min(first + ROWS, count)) for first in range(0, count, ROWS)]
    found = []
    for chunk, hashes in map_chunks(HashJob(table, roles, seed), chunks, workers=current_stage().workers):
        found.append(hashes)
        meter.update(chunk[1])
    meter.close()
    return b"".join(found)


def keep_classes(
    hashes: np.ndarray, held: np.ndarray, classes: Iterable[Sequence[str]]
) -> tuple[np.ndarray, list[str]]:
    """(mask of the held-out rows, classes that got a row back) so that each class has a training row.

    A class without one gets the held-out row with its largest hash, and the duplicates of that row. If none is held out
    then, the rows with the smallest hash are that leave every class a row.
    Raises: UserError if there are none.
    """
    import numpy as np

    held, trained, total = held.copy(), set[str](), Counter[str]()
    of_row: dict[int, frozenset[str]] = {}
    names_of: list[frozenset[str]] = []
    shared: dict[frozenset[str], frozenset[str]] = {}  # rows have few different sets of classes
    for row, names in enumerate(classes):
        found = frozenset(names)
        names_of.append(shared.setdefault(found, found))
        total.update(found)
        if held[row]:
            of_row[row] = found
        else:
            trained |= found
    given = _give_back(hashes, held, of_row, names_of, trained)
    if held.any():
        return held, given
    for value in np.unique(hashes).tolist():
        same = np.flatnonzero(hashes == value)
        lost = Counter(name for row in same.tolist() for name in names_of[row])
        if all(total[name] > count for name, count in lost.items()):
            held[same] = True
            return held, given
    raise UserError(
        "no validation rows can be held out: every row is the only one of its class",
        where="data.validation_fraction",
        remedy="Add rows, set data.validation, or set data.validation_fraction: 0.",
    )


def _give_back(
    hashes: np.ndarray,
    held: np.ndarray,
    of_row: Mapping[int, frozenset[str]],
    names_of: Sequence[frozenset[str]],
    trained: set[str],
) -> list[str]:
    """Take rows out of `held` until each class of its rows, `of_row`, is among those of training; the classes that needed
    one. names_of: the classes of every row. trained: the classes of training, which grow.
    """
    import numpy as np

    given: list[str] = []
    rows_of: dict[str, list[int]] = {}
    for row, found in of_row.items():
        for name in found - trained:
            rows_of.setdefault(name, []).append(row)
    for name in sorted(rows_of):
        if name in trained:  # with a row of another class
            continue
        row = max(rows_of[name], key=lambda row: int(hashes[row]))
        same = np.flatnonzero(hashes == hashes[row])
        held[same] = False
        given.append(name)
        trained.update(*(names_of[index] for index in same.tolist()))
    return given


def choose(hashes: np.ndarray, fraction: float) -> np.ndarray:
    """Mask of the rows that are held out, bool [rows]. hashes: uint64 [rows]. Raises: UserError as hold_out does."""
    import numpy as np

    if not len(hashes) or hashes.min() == hashes.max():
        raise UserError(
            f"no validation rows can be held out: there are no two different rows among {len(hashes):,}",
            where="data.validation_fraction",
            remedy="Add rows, set data.validation, or set data.validation_fraction: 0.",
        )
    held = hashes < np.uint64(min(int(fraction * 2.0**64), 2**64 - 1))
    if not held.any():
        held = hashes == hashes.min()
    elif held.all():
        held = hashes != hashes.max()
    return held
