"""Words and their tags as tokens: where each word begins, and which of its pieces learn its tag.

literal example, with a WordPiece tokenizer: ["EU", "rejects", "lambs"], tags [B-org, O, O]
    tokens  [CLS] eu reject ##s lamb ##s [SEP]
    first         0  1           3            label -100 on the rest (options.label_on: first)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.labels import Labels
from finetune.data.table import Row

IGNORE = -100  # finetune.models.losses.IGNORE, which needs torch


class WordEncoder:
    """A row -> {"input_ids", "token_type_ids" if the model takes them, "labels": [tokens], "firsts": [words],
    "tags": [words]}; picklable.

    firsts: the token at which a word begins; -1 for a word that was cut off, or that the tokenizer drops.
    """

    def __init__(
        self, tokenizer: Any, lookup: Labels, names: Sequence[str], *, limit: int, on_long: str, label_on: str
    ):
        self.tokenizer, self.lookup, self.limit, self.on_long, self.label_on = (
            tokenizer,
            lookup,
            limit,
            on_long,
            label_on,
        )
        by_name = {name: index for index, name in enumerate(names)}
        self.inside = [
            by_name.get(f"I-{name[2:]}" if name.startswith("B-") else name, i) for i, name in enumerate(names)
        ]

    def __call__(self, row: Row) -> dict[str, Any]:
        words = word_list(row["tokens"], "tokens")
        tags = self._tags(row, words)
        text = " ".join(words)
        encoded = self.tokenizer(text, return_offsets_mapping=True, verbose=False)
        if len(encoded["input_ids"]) > self.limit:
            if self.on_long == "drop":
                return {"input_ids": [], "labels": [], "firsts": [], "tags": []}
            if self.on_long == "error":
                raise BadRow(f"{len(encoded['input_ids'])} tokens, more than options.max_length {self.limit}")
            encoded = self.tokenizer(
                text, return_offsets_mapping=True, truncation=True, max_length=self.limit, verbose=False
            )
        owners = token_words(encoded["offset_mapping"], words, text)
        labels, firsts = [IGNORE] * len(owners), [-1] * len(words)
        for position, word in enumerate(owners):
            if word < 0:
                continue
            if firsts[word] < 0:
                firsts[word], labels[position] = position, tags[word]
            elif self.label_on == "all":
                labels[position] = self.inside[tags[word]]
        if all(first < 0 for first in firsts):
            raise BadRow("not one of the words becomes a token")
        kept = {key: encoded[key] for key in ("input_ids", "token_type_ids") if key in encoded}
        return {**kept, "labels": labels, "firsts": firsts, "tags": tags}

    def _tags(self, row: Row, words: list[str]) -> list[int]:
        tags = word_list(row["tags"], "tags")
        if len(tags) != len(words):
            raise BadRow(f"{len(tags)} tags for {len(words)} words")
        return [self.lookup.index(tag) for tag in tags]


def word_list(value: Any, role: str) -> list[str]:
    """Words or tags as text. Raises: BadRow if they are no list, there are none, or one is empty."""
    if not isinstance(value, (list, tuple)):
        raise BadRow(f"{role} are a list, not {type(value).__name__}")
    for index, item in enumerate(value):
        if isinstance(item, bool) or not isinstance(item, (str, int)) or not str(item).strip():
            raise BadRow(f"{role}: item {index + 1} is {item!r}, not a word")
    if not value:
        raise BadRow(f"{role} is empty")
    return [str(item) for item in value]


def token_words(offsets: Sequence[tuple[int, int]], words: Sequence[str], text: str) -> list[int]:
    """The word of each token of `text`, the words joined by single blanks; -1 for marks such as [CLS].

    A blank before a word belongs to it (byte-level tokenizers); a token over two words belongs to the first.
    """
    starts, position = [], 0
    for word in words:
        starts.append(position)
        position += len(word) + 1
    owners: list[int] = []
    current = 0
    for start, end in offsets:
        while start < end and text[start].isspace():
            start += 1
        if start >= end:
            owners.append(-1)
            continue
        while current + 1 < len(starts) and starts[current + 1] <= start:
            current += 1
        owners.append(current)
    return owners
