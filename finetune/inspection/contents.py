"""The contents of a split's rows: hashes for duplicates, lengths, characters, and MinHash signatures of texts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.prepare.file_digest import open_regular
from finetune.data.table import Row, Table
from finetune.inspection.characters import CharacterCounter
from finetune.inspection.similar import Part, Signatures
from finetune.recipe.roles import IMAGES, role_of
from finetune.tasks.text.conversations import ROLES

BLOCK = 4096  # rows looked at together
SPEAKER = ("role", "from")
INSTEAD = (
    "tool_calls",
    "function_call",
    "reasoning_content",
    "thinking",
    "reasoning",
    "audio",
    "refusal",
)  # of content


@dataclass
class Contents:
    """hashes: uint64 [rows], equal for rows of equal content; 0 for rows without any. characters: int [rows].

    traits: of the characters of each row, uint16 [rows]; see characters.Trait. sources: names of files; source_of: the
    source of each row, int [rows]. signatures: for near duplicates; None for rows without text. blank: rows with a text that
    is empty.
    """

    hashes: np.ndarray
    characters: np.ndarray
    traits: np.ndarray
    sources: list[str]
    source_of: np.ndarray
    counter: CharacterCounter
    signatures: Signatures | None = None
    blank: list[int] = field(default_factory=list)


def row_text(row: Row, roles: Sequence[str]) -> str:
    """All texts of a row under `roles`, one per line; the names of speakers are left out."""
    return join_parts(row_parts(row, roles))


def row_parts(row: Row, roles: Sequence[str]) -> list[Part]:
    """The texts of a row under `roles`, each with who speaks; names of one role, such as human and user, are the same."""
    return [part for role in roles if role not in IMAGES for part in _parts(row.get(role), "")]


def join_parts(parts: Sequence[Part]) -> str:
    """The texts, one per line."""
    return "\n".join(text for _, text in parts)


def _parts(value: Any, speaker: str) -> Iterator[Part]:
    if isinstance(value, str):
        yield speaker, value
    elif isinstance(value, Mapping):
        named = next((value[key] for key in SPEAKER if isinstance(value.get(key), str)), speaker)
        for key, item in value.items():
            if key not in SPEAKER:
                yield from _parts(item, ROLES.get(named, named))
    elif isinstance(value, (list, tuple)):
        if value and all(isinstance(item, str) for item in value):
            yield speaker, " ".join(value)
        else:
            for item in value:
                yield from _parts(item, speaker)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield speaker, str(value)


def has_blank(row: Row, roles: Sequence[str]) -> bool:
    """Whether a text that must be there is empty or blank, also the text of a turn."""
    for role in roles:
        value = row.get(role)
        if value is None or role_of(role).may_be_blank:
            continue
        if isinstance(value, str) and not value.strip():
            return True
        if isinstance(value, (list, tuple)) and (not value or any(map(_is_blank_turn, value))):
            return True
    return False


def _is_blank_turn(turn: Any) -> bool:
    if isinstance(turn, str):
        return not turn.strip()
    if not isinstance(turn, Mapping):
        return False
    if not any(key in turn for key in SPEAKER):
        return False
    content = turn.get("content", turn.get("value"))
    return not any(turn.get(key) for key in INSTEAD) and (
        content is None or (isinstance(content, str) and not content.strip())
    )


def _speakers(value: Any) -> Iterator[str]:
    """Who speaks in the turns of a value, in order; names of one role, such as human and user, are the same."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key in SPEAKER and isinstance(item, str):
                yield ROLES.get(item, item)
            else:
                yield from _speakers(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _speakers(item)


def content_hash(row: Row, text: str, roles: Sequence[str] = ()) -> int:
    """Equal for rows of equal content: of the text without surrounding blanks, or of the bytes of the image; 0 for none.

    roles: of which the speakers of conversations count, too.
    """
    data = text.strip().encode("utf-8", "surrogatepass")
    for image in (row[role] for role in IMAGES if row.get(role) is not None):
        data += _image_bytes(image)
    if not data:
        return 0
    if speakers := [name for role in roles for name in _speakers(row.get(role))]:
        data += "\0".join(["", *speakers]).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") or 1


def _image_bytes(value: Any) -> bytes:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path") or b""
    if isinstance(value, (bytes, bytearray)):
        return hashlib.blake2b(value).digest()
    if isinstance(value, str):
        try:
            with open_regular(value) as file:
                return hashlib.blake2b(file.read()).digest()
        except (OSError, ValueError):
            return value.encode("utf-8", "surrogatepass")
    if hasattr(value, "tobytes"):
        return hashlib.blake2b(value.tobytes()).digest()
    return repr(value).encode()


def source_of(place: str) -> str:
    """The source of a row: train.jsonl:17 -> train.jsonl, a.parquet row 3 -> a.parquet, cats/1.png -> cats."""
    file, separator, line = place.rpartition(":")
    if separator and line.isdecimal():
        return file
    file, separator, line = place.rpartition(" row ")
    if separator and line.isdecimal():
        return file
    return str(Path(place).parent)


def read_contents(
    table: Table, roles: Sequence[str], *, similar: Signatures | None, tick: Callable[[int], None]
) -> Contents:
    """One pass over the rows of a table. similar: collects signatures. tick: is called with the rows that are done."""
    count, counter = len(table), CharacterCounter()
    hashes, traits = np.zeros(count, np.uint64), np.zeros(count, np.uint16)
    characters, source = np.zeros(count, np.int64), np.zeros(count, np.int32)
    names: dict[str, int] = {}
    contents = Contents(hashes, characters, traits, [], source, counter, similar)
    for start in range(0, count, BLOCK):
        texts, parts = [], []
        for index in range(start, min(start + BLOCK, count)):
            row = table[index]
            parts.append(row_parts(row, roles))
            text = join_parts(parts[-1])
            texts.append(text)
            hashes[index] = content_hash(row, text, roles)
            if has_blank(row, roles):
                contents.blank.append(index)
            source[index] = names.setdefault(source_of(table.place(index)), len(names))
        ids = slice(start, start + len(texts))
        characters[ids] = list(map(len, texts))
        traits[ids] = counter.add(texts)
        if similar is not None:
            similar.add(start, parts)
        tick(start + len(texts))
    contents.sources = list(names)
    return contents
