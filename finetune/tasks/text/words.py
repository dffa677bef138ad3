"""Words and their tags as tokens: where each word begins, and which of its tokens learn its tag.

Rows without tags may hold a plain text in place of a list of words: it is split here, and keeps its offsets.

Example, with a WordPiece tokenizer: ["EU", "rejects", "lambs"], tags [B-org, O, O]
    tokens  [CLS] eu reject ##s lamb ##s [SEP]
    first         0  1           3            label -100 on the rest (options.label_on: first)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.label_forms import parse_list
from finetune.data.labels import Labels
from finetune.data.prepare.notices import KEY as NOTICES
from finetune.data.table import Row
from finetune.models.losses import IGNORE
from finetune.tasks.records import ASKED
from finetune.tasks.text.inputs import cut_notice, encode_each, row_text
from finetune.tasks.text.limits import limit_name
from finetune.tasks.text.splitting import split_words


@dataclass(frozen=True)
class Read:
    """The words of a row; their tags, where they are read; of a plain text (begin, end) of each word, and the text."""

    words: list[str]
    tags: list[int] | None = None
    offsets: list[tuple[int, int]] | None = None
    text: str = ""

    def asked(self) -> dict[str, Any]:
        """What a record of the answer names: {"words"}, of a plain text also {"offsets", "text"}."""
        if self.offsets is None:
            return {"words": self.words}
        return {"words": self.words, "offsets": [list(pair) for pair in self.offsets], "text": self.text}


class WordEncoder:
    """Rows -> {"input_ids", "token_type_ids" if the model takes them, "firsts": [words], "asked": see Read}, and with
    targets also "labels": [tokens] and "tags": [words]. Picklable.

    firsts: the token at which a word begins; -1 for a word that was cut off, or that the tokenizer drops.
    """

    def __init__(
        self, tokenizer: Any, lookup: Labels, names: Sequence[str], *, limit: int, on_long: str, label_on: str
    ) -> None:
        self.tokenizer, self.lookup, self.limit = tokenizer, lookup, limit
        self.on_long, self.label_on = on_long, label_on
        by_name = {name: index for index, name in enumerate(names)}
        self.inside = [
            by_name.get(f"I-{name[2:]}" if name.startswith("B-") else name, i) for i, name in enumerate(names)
        ]

    def encode(self, rows: Sequence[Row], *, with_targets: bool) -> list[dict[str, Any] | BadRow]:
        """One example or BadRow per row. All texts go through the fast tokenizer at once."""
        read = encode_each(rows, lambda row: self._read(row, with_targets))
        texts = [" ".join(item.words) for item in read if not isinstance(item, BadRow)]
        tokens = iter(self._tokenize(texts))
        return [item if isinstance(item, BadRow) else self._example(item, next(tokens)) for item in read]

    def _read(self, row: Row, with_targets: bool) -> Read:
        if not with_targets and row.get("tokens") is None and row.get("text") is not None:
            text = row_text(row, "text")
            offsets = split_words(text)
            return Read([text[start:end] for start, end in offsets], None, offsets, text)
        words = word_list(row.get("tokens"), "tokens")
        if not with_targets:
            return Read(words)
        tags = word_list(row.get("tags"), "tags")
        if len(tags) != len(words):
            raise BadRow(f"{len(tags)} tags for {len(words)} words")
        return Read(words, [self.lookup.index(tag) for tag in tags])

    def _tokenize(self, texts: list[str]) -> list[dict[str, Any]]:
        """Per text: input_ids, offset_mapping and, where the model takes them, token_type_ids, before any truncation."""
        if not texts:
            return []
        together = self.tokenizer(texts, return_offsets_mapping=True, verbose=False)
        keys = [key for key in ("input_ids", "token_type_ids", "offset_mapping") if key in together]
        return [{key: together[key][index] for key in keys} for index in range(len(texts))]

    def _example(self, read: Read, encoded: dict[str, Any]) -> dict[str, Any] | BadRow:
        words, tags, text = read.words, read.tags, " ".join(read.words)
        cuts: list[str] = []
        if len(encoded["input_ids"]) > self.limit:
            if self.on_long == "drop":
                return {"input_ids": [], "labels": [], "firsts": [], "tags": []}
            if self.on_long == "error":
                return BadRow(
                    f"{len(encoded['input_ids'])} tokens, more than {limit_name(self.limit)} {self.limit}",
                    kind="too_long",
                )
            encoded = self.tokenizer(
                text, return_offsets_mapping=True, truncation=True, max_length=self.limit, verbose=False
            )
            cuts = [cut_notice(self.limit)]
        owners = token_words(encoded["offset_mapping"], words, text)
        firsts = [-1] * len(words)
        for position, word in enumerate(owners):
            if word >= 0 and firsts[word] < 0:
                firsts[word] = position
        if all(first < 0 for first in firsts):
            return BadRow("not one of the words becomes a token")
        kept: dict[str, Any] = {key: encoded[key] for key in ("input_ids", "token_type_ids") if key in encoded}
        kept |= {ASKED: read.asked(), **({NOTICES: cuts} if cuts else {})}
        if tags is None:
            return {**kept, "firsts": firsts}
        return {**kept, "labels": self._labels(owners, firsts, tags), "firsts": firsts, "tags": tags}

    def _labels(self, owners: Sequence[int], firsts: Sequence[int], tags: Sequence[int]) -> list[int]:
        """The tag of each token, -100 where none is learned."""
        labels = [IGNORE] * len(owners)
        for position, word in enumerate(owners):
            if word >= 0 and firsts[word] == position:
                labels[position] = tags[word]
            elif word >= 0 and self.label_on == "all":
                labels[position] = self.inside[tags[word]]
        return labels


def word_list(value: Any, role: str) -> list[str]:
    """Words or tags as text; a list may be written as text, as pandas writes it into a csv: "['EU', 'rejects']".

    Raises: BadRow if the value is not a list, is empty, or holds an empty word.
    """
    if value is None:
        raise BadRow(f"no {role}")
    if isinstance(value, str):
        items = parse_list(value.strip())
        if items is None:
            raise BadRow(f"{role} are a list, not text")
        value = items
    if not isinstance(value, (list, tuple)):
        raise BadRow(f"{role} are a list, not {type(value).__name__}")
    if role == "tags":
        value = [int(item) if isinstance(item, float) and item.is_integer() else item for item in value]
        for index, item in enumerate(value):
            if isinstance(item, int) and item < 0:
                raise BadRow(f"tags: item {index + 1} is {item}: the numbers of tags begin at 0")
    for index, item in enumerate(value):
        if isinstance(item, bool) or not isinstance(item, (str, int)) or not str(item).strip():
            raise BadRow(f"{role}: item {index + 1} is {item!r}, not a word")
    if not value:
        raise BadRow(f"{role} is empty", kind="empty")
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
