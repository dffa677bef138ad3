"""A model as a replica holds it: rows of a request become examples, and outcomes become records, as in `finetune predict`."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

from finetune.data.bad_rows import BadRow, BadValue
from finetune.data.columns import apply_roles, resolve_columns
from finetune.data.image_values import base64_bytes, image_bytes, is_inline, shorten
from finetune.data.images import image_size
from finetune.data.prepare.notices import KEY as NOTICES
from finetune.data.values import number_notices
from finetune.errors import is_failure
from finetune.inference.answering import Answerer, Outcome, RowError
from finetune.inference.prediction.feeder import map_together
from finetune.inference.recording import record_outcome
from finetune.inference.serving.messages import ModelFacts, Record
from finetune.inference.serving.row_keys import unread_keys
from finetune.inference.serving.splitting import ServedPieces, merge_pieces
from finetune.tasks import CARDS
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.batch import RecordOptions
from finetune.tasks.task import Encoded, Task

MOST_UNREAD = 20  # columns of a row that are listed as not read

Pieces = list[dict[str, Any]]


@dataclass(frozen=True)
class ServedModel:
    """facts: for the front process. pixels: the most that an image may have. pieces: how rows are cut; None: not."""

    task: Task
    artifacts: TaskArtifacts
    answerer: Answerer
    facts: ModelFacts
    pixels: int
    pieces: ServedPieces | None = None
    _own: threading.local = field(default_factory=threading.local, repr=False)

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any] | RowError]:
        """An example per row, or why there is none. Any number of threads may call it."""
        whole = self._each(rows, lambda good: [one if isinstance(one, BadRow) else [one] for one in self._encode(good)])
        return [item if isinstance(item, RowError) else item[0] for item in whole]

    def split(self, rows: Sequence[Mapping[str, Any]]) -> list[Pieces | RowError]:
        """The examples of each row, several where it is cut, or why there are none. Any number of threads may call it."""
        if self.pieces is None:
            return [item if isinstance(item, RowError) else [item] for item in self.encode(rows)]
        return self._each(rows, partial(map_together, work=self.pieces.split))

    def merge(self, split: Sequence[Pieces | RowError], outcomes: Sequence[Outcome]) -> list[Outcome]:
        """The outcome of each row. outcomes: of all examples that `split` has made, in their order."""
        rest, merged = iter(outcomes), list[Outcome]()
        for item in split:
            if isinstance(item, RowError):
                merged.append(item)
                continue
            own = [next(rest) for _ in item]
            merged.append(own[0] if self.pieces is None else merge_pieces(self.pieces, item, own))
        return merged

    def _each(
        self,
        rows: Sequence[Mapping[str, Any]],
        encode: Callable[[Sequence[Mapping[str, Any]]], Sequence[Pieces | BadRow]],
    ) -> list[Pieces | RowError]:
        """What `encode` makes of the rows that can be read. What was changed in a row is noted in its first example."""
        notices: list[list[str]] = [[] for _ in rows]
        read = [self._read(row, changes) for row, changes in zip(rows, notices, strict=True)]
        encoded = iter(encode([row for row in read if not isinstance(row, BadRow)]))
        outcomes: list[Pieces | RowError] = []
        for row, changes in zip(read, notices, strict=True):
            item: Pieces | BadRow = row if isinstance(row, BadRow) else next(encoded)
            if isinstance(item, BadValue):
                item = item.with_columns(self.facts.columns)
            if isinstance(item, BadRow):
                outcomes.append(bad_row_error(item))
            else:
                first = {**item[0], NOTICES: [*changes, *item[0].get(NOTICES, ())]} if changes else item[0]
                outcomes.append([first, *item[1:]])
        return outcomes

    def record(self, row: int, outcome: Outcome, options: RecordOptions) -> Record:
        """What the client reads of one row."""
        return record_outcome(self.task, self.artifacts, row, outcome, options)

    def _encode(self, rows: Sequence[Mapping[str, Any]]) -> list[Encoded]:
        """All rows together; one by one where that fails, so that a row that nothing foresaw ends only itself."""
        artifacts = self._artifacts()
        try:
            return self.task.encode(artifacts, rows, with_targets=False) if rows else []
        except BaseException as error:
            if not is_failure(error):
                raise
            return [self._encode_alone(artifacts, row) for row in rows]

    def _encode_alone(self, artifacts: TaskArtifacts, row: Mapping[str, Any]) -> Encoded:
        try:
            return self.task.encode(artifacts, [row], with_targets=False)[0]
        except BaseException as error:
            if not is_failure(error):
                raise
            return BadRow(f"the row cannot be encoded: {type(error).__name__}: {error}"[:500])

    def _artifacts(self) -> TaskArtifacts:
        """With this thread's own processor: fast tokenizers refuse to be used by two threads while one changes them."""
        if not hasattr(self._own, "artifacts"):
            self._own.artifacts = replace(self.artifacts, processor=copy.deepcopy(self.artifacts.processor))
        own: TaskArtifacts = self._own.artifacts
        return own

    def _read(self, row: Mapping[str, Any], notices: list[str]) -> dict[str, Any] | BadRow:
        """The row by roles. An image is inside of it: nothing that a client sends names a file of this machine.

        notices: is given what is not read of the row, or not as it is.
        """
        try:
            mapping = row_mapping(self.facts.task, tuple(self.facts.columns.items()), tuple(row))
            unread, fault = unread_keys(row, [column.partition(".")[0] for column in mapping.values()], self.facts)
            if fault:
                raise BadRow(fault)
            read = apply_roles(row, mapping)
        except BadRow as bad:
            return bad
        notices += [f"the column {shorten(name)} is not read" for name in unread[:MOST_UNREAD]]
        notices += number_notices(read, mapping)
        if self.facts.image:
            try:
                read[self.facts.image] = _image(read.get(self.facts.image), self.pixels)
            except BadRow as bad:
                return bad
        return read


@lru_cache(maxsize=256)
def row_mapping(task: str, columns: tuple[tuple[str, str], ...], keys: tuple[str, ...]) -> dict[str, str]:
    """{role: key} for a row with these keys, as training and prediction find the columns of a file.

    columns: (role, column) as the recipe maps them; a row may also have the role itself. Raises: BadRow.
    """
    card = CARDS[task].for_asking()
    explicit = {role: column for role, column in columns if column in keys or column.partition(".")[0] in keys}
    nested = [column for column in explicit.values() if column not in keys]
    mapping, faults = resolve_columns(explicit, keys, card, card.rows.required, nested)
    if faults:
        fault = faults[0]
        listed = ", ".join(keys)[:200] or "nothing"
        wanted = " or ".join(next(roles for roles in card.rows.required if fault.role in roles))
        raise BadRow(
            f"no {wanted}; the row has {listed}"
            + (f" (is {fault.nearest} meant to be {wanted}?)" if fault.nearest else "")
        )
    return mapping


def bad_row_error(bad: BadRow) -> RowError:
    """The error of a row that cannot be encoded."""
    return RowError(str(getattr(bad, "kind", "bad_row")), str(bad))


def _sent_image(text: str) -> bytes:
    """The bytes of base64 text or a data URI. Raises: BadRow for anything else, such as a path or an address."""
    try:
        inline = image_bytes(text)
        found = base64_bytes(text) if inline is None else inline
        if inline is None:
            image_size(found)  # a path may consist of letters of base64
    except BadRow as bad:
        if is_inline(text):
            raise
        raise BadRow(
            f"the image is neither base64 nor a data URI: {shorten(text)} (paths and addresses are not opened)"
        ) from bad
    return found


def _image(value: Any, most: int) -> bytes:
    """The bytes of an image. Raises: BadRow for a path or an address, and for one with too many pixels."""
    if isinstance(value, Mapping):
        value = value.get("bytes", value.get("url"))
    if isinstance(value, str) and value:
        value = _sent_image(value)
    if not isinstance(value, (bytes, bytearray)) or not value:
        raise BadRow("no image; send its bytes as base64 or as a data URI", kind="empty")
    width, height = image_size(bytes(value))
    if width * height > most:
        raise BadRow(
            f"the image has {width} x {height} pixels, more than the server's limit of {most:,}", kind="too_long"
        )
    return bytes(value)
