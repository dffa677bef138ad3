"""The text of each token, and who says it."""

from __future__ import annotations

import itertools
import json
import unicodedata
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.table import Row
from finetune.tasks.text.conversations import read_turns
from finetune.tasks.text.row_values import read_history
from finetune.tasks.text.turns import template_leads

LOST = "\ufffd"  # what decoding gives for a part of a character
MAX_BYTES = 4  # of a character in UTF-8
CONTINUED = "·"  # stands for the further tokens of a character
SPEAKERS = {
    "system": "system",
    **dict.fromkeys(("instruction", "input", "prompt"), "user"),
    **dict.fromkeys(("output", "completion", "chosen", "rejected", "target"), "assistant"),
    **dict.fromkeys(("text", "text_pair", "source", "tokens"), "text"),
}
SPECIAL, TEMPLATE = "special", "template"  # roles of tokens that nobody says
_TAIL = 12  # characters of a template before a turn, by which its place is recognized


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text that each token adds; tokens that continue a character add "·"."""
    texts: list[str] = []
    place = 0
    while place < len(ids):
        text = _added(tokenizer, ids, place, place + 1)
        size = 1
        while LOST in text and size < MAX_BYTES and place + size < len(ids):
            longer = _added(tokenizer, ids, place, place + size + 1)
            size += 1
            if LOST not in longer:
                text = longer
                break
        else:
            size = 1
        texts += [text, *[CONTINUED] * (size - 1)]
        place += size
    return texts


def _added(tokenizer: Any, ids: Sequence[int], start: int, end: int) -> str:
    """What the tokens from start to end add to the one before them (its presence decides about a blank)."""
    if not start:
        return _decode(tokenizer, ids[start:end])
    before = _decode(tokenizer, ids[start - 1 : start])
    both = _decode(tokenizer, ids[start - 1 : end])
    return both[len(before) :] if both.startswith(before) else _decode(tokenizer, ids[start:end])


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def written_roles(roles: Sequence[str], runs: Sequence[tuple[int, int]]) -> list[str]:
    """The roles, where what a model learns to write is the assistant's: calls of tools, say, which a template writes out.

    runs: [start, end) of learned tokens; those that hold the text of another speaker stay as they are.
    """
    found = list(roles)
    for start, end in runs:
        if {"user", "system", "tool", "text"}.isdisjoint(roles[start:end]):
            found[start:end] = ["assistant" if role == TEMPLATE else role for role in roles[start:end]]
    return found


def token_roles(tokenizer: Any, ids: Sequence[int], texts: Sequence[str], row: Row, name: str) -> list[str]:
    """Who says each token: system, user, assistant, tool, text; "special" for marks; "template" for what a template adds.

    texts: of the tokens. name: of the sequence ("chosen", "rejected", "source", "target", "").
    The turns of the row are found in the text one after the other.
    """
    special = set(tokenizer.all_special_ids) | {
        index for index, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    shown = ["" if text == CONTINUED else text for text in texts]
    turns = row_turns(row, name)
    if {speaker for speaker, _ in turns} == {"text"}:  # nobody else can have said anything
        return [SPECIAL if int(index) in special else "text" for index in ids]
    letters, lead = _Letters("".join(shown)), _leads(tokenizer)
    spans, cursor = [], 0
    for speaker, content in turns:
        found = letters.find(content, cursor, lead.get(speaker, ""))
        if found is not None:
            spans.append((*found, speaker))
            cursor = found[1]
    roles, position, current = [], 0, 0
    for index, text in zip(ids, shown, strict=True):
        middle = position + len(text) / 2
        while current < len(spans) and spans[current][1] <= middle:
            current += 1
        inside = current < len(spans) and spans[current][0] <= middle
        roles.append(SPECIAL if int(index) in special else spans[current][2] if inside else TEMPLATE)
        position += len(text)
    return roles


class _Letters:
    """A decoded text to search in, without regard to blanks, case and accents, which tokenizers may change."""

    def __init__(self, whole: str) -> None:
        self.text, self.places = _squeeze(whole)
        self.places.append(len(whole))

    def find(self, content: str, cursor: int, lead: str) -> tuple[int, int] | None:
        """[start, end) of a turn in the whole text from `cursor` on: behind what the template puts before it, else anywhere.

        Of a turn that was cut, or that the tokenizer does not know in part, what is there of it from its beginning on.
        """
        sought, lead = _squeeze(content)[0], _squeeze(lead)[0]
        if not sought:
            return None
        first = bisect_left(self.places, cursor)
        for before in dict.fromkeys((lead, "")):
            for wanted in (sought, sought[:_TAIL]):
                start = self.text.find(before + wanted, first) + len(before)
                if start >= first + len(before):
                    length = shared_length(sought, self.text[start : start + len(sought)])
                    return self.places[start], self.places[start + length - 1] + 1
        return None


def shared_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many items two sequences have in common at their beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (left, right) in pairs if left != right), min(len(one), len(other)))


def _squeeze(text: str) -> tuple[str, list[int]]:
    """A text without blanks, case and accents, and the place of each of its characters."""
    kept: list[str] = []
    places: list[int] = []
    for place, character in enumerate(text):
        for part in unicodedata.normalize("NFKD", character).casefold():
            if not part.isspace() and unicodedata.category(part) != "Mn":
                kept.append(part)
                places.append(place)
    return "".join(kept), places


def row_turns(row: Row, name: str) -> list[tuple[str, str]]:
    """(speaker, text) of each turn of a row, in the order of a conversation."""
    turns: list[tuple[str, str]] = []
    if row.get("history") is not None:
        with suppress(BadRow):
            turns += [(turn["role"], turn["content"]) for turn in read_history(row).messages]
    answers = {"chosen": "rejected", "rejected": "chosen", "source": "target", "target": "source"}
    for role, speaker in (("messages", ""), *SPEAKERS.items()):
        value = row.get(role)
        if value is not None and role != answers.get(name):
            spoken = _turns(value, speaker)
            turns = [*spoken, *turns] if role == "system" else [*turns, *spoken]
    return turns


def _turns(value: Any, speaker: str) -> list[tuple[str, str]]:
    if isinstance(value, str) and value.lstrip()[:2] == "[{":
        try:
            value = json.loads(value)
        except ValueError:
            return [(speaker, value)]
    if isinstance(value, (list, tuple, Mapping)):
        if not isinstance(value, Mapping) and all(isinstance(item, str) for item in value):
            return [(speaker, " ".join(value))]
        try:
            return [(str(turn["role"]), str(turn["content"])) for turn in read_turns(value).messages]
        except BadRow:
            return []
    return [(speaker or "text", str(value))]


def group_turns(roles: Sequence[str], texts: Sequence[str], learned: Sequence[bool] = ()) -> list[tuple[str, int, int]]:
    """(speaker, start, end) of each turn, over all tokens: marks and template text are with the turn that they are about.

    What stands between two turns belongs to the first one up to its end mark and the blanks after it, else to the second.
    """
    runs: list[list[Any]] = []
    for place, role in enumerate(roles):
        if role in (SPECIAL, TEMPLATE):
            continue
        if runs and runs[-1][0] == role and SPECIAL not in roles[runs[-1][2] : place]:
            runs[-1][2] = place + 1
        else:
            runs.append([role, place, place + 1])
    if not runs:
        return [(TEMPLATE, 0, len(roles))] if roles else []
    runs[0][1], runs[-1][2] = 0, len(roles)
    for one, other in itertools.pairwise(runs):
        one[2] = other[1] = _border(roles, texts, learned or [False] * len(roles), one[2], other[1])
    return [(role, start, end) for role, start, end in runs]


def _border(roles: Sequence[str], texts: Sequence[str], learned: Sequence[bool], start: int, end: int) -> int:
    """Where, between a turn that ends at `start` and one that begins at `end`, the second one begins.

    What is learned together with a turn belongs to it.
    """
    if learned[start - 1]:
        while start < end and learned[start]:
            start += 1
    if learned[end]:
        while start < end and learned[end - 1]:
            end -= 1
    marks = [place for place in range(start, end) if roles[place] == SPECIAL]
    closed = roles[start - 1] == SPECIAL  # among what was learned
    border = start if closed or not marks else marks[0] + 1
    if closed or marks:
        while border < end and roles[border] != SPECIAL and texts[border].isspace():
            border += 1
    return border


def _leads(tokenizer: Any) -> dict[str, str]:
    """The last characters that the chat template puts before a turn of each speaker, where it can be asked."""
    return {role: lead[-_TAIL:] for (_, role), lead in template_leads(tokenizer).items()}
