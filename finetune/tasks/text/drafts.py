"""Rendered rows on their way to tokens: a batch of rows is rendered first, then tokenized in one call."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, TypeVar

from finetune.data.bad_rows import BadRow
from finetune.data.table import Row
from finetune.errors import is_failure
from finetune.tasks.text.chat_template import Span

Item = TypeVar("Item")


@dataclass(frozen=True)
class Draft:
    """A text whose tokens are wanted.

    spans: characters to learn, ascending. marked: they come from {% generation %} marks, so the mark that ends a turn may
    stand right behind them. closed: the last one ends with its mark; otherwise, if it ends the text, the end-of-text token
    is added, or the model would never learn to stop. special: the tokenizer adds its own special tokens. finished: the
    text ends with the end-of-text token, once, which is learned if the last span reaches the end.
    reply_start: character where the last reply begins; None: at the last span. reply_end: where it ends; None: with the text.
    """

    text: str
    spans: Sequence[Span] = ()
    marked: bool = False
    closed: bool = True
    special: bool = False
    finished: bool = False
    reply_start: int | None = None
    reply_end: int | None = None
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tokens:
    """ids, and spans, reply_start and reply_end of a draft in tokens; reply_end is None where the reply is the end of it."""

    ids: list[int]
    spans: list[Span]
    reply_start: int
    notices: tuple[str, ...]
    reply_end: int | None = None


def encode_drafts(
    tokenizer: Any,
    rows: Sequence[Row],
    read: Callable[[Row], Sequence[Draft]],
    finish: Callable[[Row, Sequence[Tokens]], dict[str, Any]],
) -> list[dict[str, Any] | BadRow]:
    """One example or BadRow per row: read into drafts, all of them tokenized together, finished from their tokens.

    What a draft says of its row goes into the example as "notices".
    """
    drafted = [_attempt(read, row) for row in rows]
    drafts = [draft for item in drafted if not isinstance(item, BadRow) for draft in item]
    tokens = iter(tokenize(tokenizer, drafts))
    examples: list[dict[str, Any] | BadRow] = []
    for row, item in zip(rows, drafted, strict=True):
        if isinstance(item, BadRow):
            examples.append(item)
            continue
        own = [next(tokens) for _ in item]
        bad = next((each for each in own if isinstance(each, BadRow)), None)
        if bad is not None:
            examples.append(bad)
            continue
        usable = [each for each in own if isinstance(each, Tokens)]
        example = _attempt(lambda row, usable=usable: finish(row, usable), row)  # type: ignore[misc]
        if isinstance(example, dict):
            notices = [notice for each in usable for notice in each.notices]
            example["notices"] = list(dict.fromkeys([*notices, *example.get("notices", ())]))
        examples.append(example)
    return examples


def _attempt(function: Callable[[Row], Item], row: Row) -> Item | BadRow:
    try:
        return function(row)
    except BadRow as bad:
        return bad


def tokenize(tokenizer: Any, drafts: Sequence[Draft]) -> list[Tokens | BadRow]:
    """The tokens of each draft, in at most two calls of the fast tokenizer; a text that it refuses is a BadRow."""
    special_ids = frozenset(tokenizer.added_tokens_decoder)
    tokens: list[Tokens | BadRow] = [BadRow("not tokenized")] * len(drafts)
    for special in (False, True):
        chosen = [index for index, draft in enumerate(drafts) if draft.special == special]
        encoded = _encode(tokenizer, [drafts[index].text for index in chosen], special)
        for index, item in zip(chosen, encoded, strict=True):
            tokens[index] = item if isinstance(item, BadRow) else _map(tokenizer, special_ids, drafts[index], *item)
    return tokens


Encoded = tuple[list[int], list[Span]]  # ids, and the characters of each


def _encode(tokenizer: Any, texts: list[str], special: bool) -> Iterator[Encoded | BadRow]:
    if not texts:
        return
    options = {"return_offsets_mapping": True, "return_attention_mask": False, "return_token_type_ids": False}
    try:
        together = tokenizer(texts, add_special_tokens=special, verbose=False, **options)
    except BaseException as error:  # one text that the tokenizer refuses must not take the others with it
        if not is_failure(error):
            raise
        if len(texts) == 1:
            yield BadRow(f"the tokenizer refuses the text: {error}")
        else:
            for text in texts:
                yield from _encode(tokenizer, [text], special)
        return
    yield from zip(together["input_ids"], together["offset_mapping"], strict=True)


def _map(tokenizer: Any, special_ids: frozenset[int], draft: Draft, ids: list[int], offsets: list[Span]) -> Tokens:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if (
        len(ids) > 1 and bos is not None and ids[0] == ids[1] == bos
    ):  # one in the text, one by the tokenizer or template
        ids, offsets = ids[1:], offsets[1:]
    spans = token_spans(offsets, draft.spans)
    reply_end = None
    if draft.reply_start is None:
        reply_start = spans[-1][0] if spans else 0
    else:
        found = token_spans(offsets, [(draft.reply_start, draft.reply_end or len(draft.text))])
        reply_start = found[0][0] if found else len(ids)
        reply_end = found[0][1] if found and draft.reply_end is not None else None
    closed = draft.closed
    if draft.marked and spans:
        spans = [
            (start, end + (ids[end - 1] not in special_ids and end < len(ids) and ids[end] in special_ids))
            for start, end in spans
        ]
        closed = ids[spans[-1][1] - 1] in special_ids
    if draft.finished:
        whole = bool(draft.spans) and draft.spans[-1][1] == len(draft.text)
        if eos is not None and not (ids and ids[-1] == eos):
            ids = [*ids, eos]
        if whole and spans:
            spans = [*spans[:-1], (spans[-1][0], len(ids))]
    elif not closed and spans and eos is not None and spans[-1][1] == len(ids):
        ids, spans = [*ids, eos], [*spans[:-1], (spans[-1][0], len(ids) + 1)]
    return Tokens(list(ids), spans, reply_start, draft.notices, reply_end)


def token_spans(offsets: Sequence[Span], characters: Sequence[Span]) -> list[Span]:
    """Runs of tokens that share a character with one of the spans; tokens without characters belong to none.

    [(0, 2), (2, 5), (5, 6)], [(3, 6)] -> [(1, 3)]
    """
    found: list[Span] = []
    position, count = 0, len(offsets)
    while count > 1 and offsets[count - 1][1] == 0:  # added by the tokenizer behind the text
        count -= 1
    for start, end in characters:
        position = bisect_right(offsets, start, position, count, key=itemgetter(1))
        first = position
        position = bisect_left(offsets, end, position, count, key=itemgetter(0))
        if position > first:
            found.append((first, position))
    return found
