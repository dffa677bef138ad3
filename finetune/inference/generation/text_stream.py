"""Tokens as text while they are written: pieces that never change afterwards, held back where a stop may begin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # how tokenizers decode a part of a character
_WINDOW = 6  # tokens before a piece that are decoded with it, as decoding depends on what stands before


class TextStream:
    """push(token) -> the text that became certain.

    Text stops are found wherever they end, across tokens too; neither the stop nor what follows it becomes text.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self._tokenizer, self._stops = tokenizer, tuple(stops)
        self.clear()

    def clear(self) -> None:
        """As before the first token."""
        self._ids: list[int] = []
        self._start = self._read = 0  # tokens before `_read` are text already; decoding begins at `_start`
        self._held = ""  # text that may be the beginning of a stop
        self._pieces: list[str] = []
        self.stopped = False

    @property
    def text(self) -> str:
        """Everything that became certain."""
        return "".join(self._pieces)

    def decode(self, ids: Sequence[int]) -> str:
        """All of `ids` at once, without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def push(self, token: int) -> str:
        """Add a token. Nothing is added any more once a stop was found."""
        if self.stopped:
            return ""
        self._ids.append(token)
        before = self.decode(self._ids[self._start : self._read])
        now = self.decode(self._ids[self._start :])
        if now.endswith(UNFINISHED) or len(now) <= len(before) or not now.startswith(before):
            return ""
        self._start, self._read = max(self._start, self._read - _WINDOW), len(self._ids)
        return self._add(now[len(before) :])

    def close(self) -> str:
        """The rest, held back until now: no more tokens come."""
        if self.stopped:
            return ""
        before, now = self.decode(self._ids[self._start : self._read]), self.decode(self._ids[self._start :])
        common = next((i for i, (one, other) in enumerate(zip(before, now, strict=False)) if one != other), len(before))
        rest = now[common:]
        self._read = len(self._ids)
        piece = self._add(rest)
        if not self.stopped:
            self._pieces.append(self._held)
            piece, self._held = piece + self._held, ""
        return piece

    def _add(self, text: str) -> str:
        text = self._held + text
        found = [(text.index(stop), stop) for stop in self._stops if stop in text]
        if found:
            self.stopped, self._held = True, ""
            text = text[: min(found)[0]]
        else:
            keep = max((_overlap(text, stop) for stop in self._stops), default=0)
            text, self._held = text[: len(text) - keep], text[len(text) - keep :]
        self._pieces.append(text)
        return text


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` that are a beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if stop.startswith(text[-size:])), 0)
