"""The folder <output>.parts/ beside the output of a prediction: the names of its files, and writing that survives a crash.

manifest.json               what is asked of what: data, model and options by digest
state.json                  how far the output is, replaced after each window
journal.jsonl               what each start of the command did
rows/                       the windows of a Parquet output, until they are put together
scored.jsonl                answers and scores of rows with targets, for the metrics at the end
window-00000012/            only while the window is open:
    spool.bin, spool.json   its examples by chunk; written again by every start
    rows.jsonl              one line per row: what of it goes to the output besides the answer
    00003.answers           the outcomes of chunk 3: complete as soon as it has this name
    00003.died              a rank's process died at chunk 3, once so far
    00003.failed            a rank failed at chunk 3, so its examples are answered one by one
    00003.lost              the examples at which a rank failed even so
at-00001                    what rank 1 is at, for whoever finds it dead; see prediction/deaths.py

What is there belongs to one output and one command, which goes on with it after any end.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from finetune.errors import Halted, UserError
from finetune.recipe.json_file import read_json

ChunkName = tuple[int, int]  # (window, number within it)
SUFFIX = ".parts"
SEAL = "seal"  # key of the digest of a file's other values
_ROW = re.compile(rb'^\{"row": (\d+)', re.MULTILINE)  # of a line of answers


class Parts:
    """Paths below the folder of one output."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output.with_name(output.name + SUFFIX)
        self.manifest = self.folder / "manifest.json"
        self.state = self.folder / "state.json"
        self.journal = self.folder / "journal.jsonl"
        self.scored = self.folder / "scored.jsonl"
        self.logs = self.folder / "logs"
        self.rows = self.folder / "rows"  # windows of an output that cannot grow by itself

    def window(self, number: int) -> Path:
        return self.folder / f"window-{number:08d}"

    def answers(self, name: ChunkName) -> Path:
        return self.window(name[0]) / f"{name[1]:05d}.answers"

    def failed(self, name: ChunkName) -> Path:
        return self.answers(name).with_suffix(".failed")

    def lost(self, name: ChunkName) -> Path:
        return self.answers(name).with_suffix(".lost")

    def died(self, name: ChunkName) -> Path:
        return self.answers(name).with_suffix(".died")

    def at(self, rank: int) -> Path:
        """What a rank is at; see prediction/deaths.py."""
        return self.folder / f"at-{rank:05d}"

    def remove_window(self, number: int) -> None:
        shutil.rmtree(self.window(number), ignore_errors=True)

    def has_answers(self) -> bool:
        """Whether some chunk of an open window is answered."""
        return any(next(self.window(number).glob("*.answers"), None) is not None for number in self.windows())

    def count_answered(self) -> int:
        """Rows of open windows of which an earlier start has answered something."""
        rows: set[bytes] = set()
        for path in self.folder.glob("window-*/*.answers"):
            with suppress(OSError):
                rows.update(_ROW.findall(path.read_bytes()))
        return len(rows)

    def windows(self) -> list[int]:
        """Numbers of the windows that have a folder, ascending. What somebody else has put there is left alone."""
        found = (re.fullmatch(r"window-([0-9]{8,})", path.name) for path in self.folder.glob("window-*"))
        numbers = (int(match[1]) for match in found if match)
        return sorted(number for number in numbers if self.window(number).is_dir())


def publish(path: Path, content: bytes) -> None:
    """Replace `path` by a file that is whole and on the disk; after a crash, the previous one is still there.

    Raises: Halted that names the path, such as for a full disk.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with disk_errors(path):
        try:
            with beside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


def publish_json(path: Path, value: Any) -> None:
    """As `publish`, with JSON for people."""
    publish(path, (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode())


def publish_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """As `publish_json`, with a digest of the values: they decide which rows are asked, so none is believed that was edited."""
    publish_json(path, {**value, SEAL: _seal(value)})


def read_sealed(path: Path) -> dict[str, Any]:
    """The values that publish_sealed() has written. Raises: OSError; ValueError for any others."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError("it is no object")
    seal = found.pop(SEAL, None)
    if seal != _seal(found):
        raise ValueError("it was edited" if seal else "it was edited, or is of an earlier version")
    return found


def _seal(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def cut_back(path: Path, size: int) -> None:
    """Remove what is behind the first `size` bytes of a file, which is made if there is none and `size` is 0.

    Raises: UserError for a file that is shorter: it was changed, and rows would be missing. OSError.
    """
    with path.open("ab") as file:
        found = file.tell()
        if found >= size:
            file.truncate(size)
            return
    raise UserError(
        f"has {found:,} bytes, fewer than the {size:,} that were written to it",
        where=str(path),
        remedy=f"Bring it back as it was, or remove the output and its folder *{SUFFIX} to begin again.",
    )


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Halted that names the file in place of an OSError (full disk, no permission)."""
    try:
        yield
    except OSError as error:
        raise Halted(
            f"cannot write: {error.strerror or error}",
            where=str(path),
            remedy="What is answered stays. Free some space and run the same command again to resume.",
        ) from error
