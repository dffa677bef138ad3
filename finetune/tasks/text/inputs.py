"""Inputs of tasks that read a text, or a pair of texts, and predict something of the whole.

Used by text classification, sequence regression and reward models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.prepare.notices import KEY as NOTICES
from finetune.data.table import Row, Table
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.batch import Batch
from finetune.tasks.text.limits import limit_name
from finetune.tasks.text.padding_free import split_rows

SHOWN_CHARACTERS = 400
SHOWN = "shown"  # the key of an example, and of a batch's `meta`, that holds the texts of rows as they are written

Tokens = dict[str, list[int]]


def encode_each(rows: Sequence[Row], encode: Callable[[Row], Any]) -> list[Any]:
    """`encode` of each row, or the BadRow that it raised."""
    encoded: list[Any] = []
    for row in rows:
        try:
            encoded.append(encode(row))
        except BadRow as bad:
            encoded.append(bad)
    return encoded


def tokenize_texts(tokenizer: Any, texts: Sequence[Sequence[str] | BadRow], limit: int, on_long: str) -> list[Any]:
    """Single texts [text] and pairs [text, other] -> {"input_ids", "token_type_ids" if the model takes them} for each.

    All of them go through the fast tokenizer in two calls, one for single texts and one for pairs. An example that is
    longer than `limit` is truncated, or marked to be left out ({"input_ids": []}), or a BadRow, as `on_long` says
    (truncate, drop, error). A truncated example has a notice. A BadRow in `texts` stays; a text without any token of its own,
    such as zero-width spaces, is one.
    """
    encoded: list[Any] = [item if isinstance(item, BadRow) else {} for item in texts]
    for size in (1, 2):
        chosen = [index for index, item in enumerate(texts) if not isinstance(item, BadRow) and len(item) == size]
        if not chosen:
            continue
        columns = [[texts[index][part] for index in chosen] for part in range(size)]  # type: ignore[index]
        together = tokenizer(*columns, verbose=False)
        keys = [key for key in ("input_ids", "token_type_ids") if key in together]
        special = tokenizer.num_special_tokens_to_add(pair=size == 2)
        for place, index in enumerate(chosen):
            one = {key: together[key][place] for key in keys}
            if len(one["input_ids"]) <= special:
                encoded[index] = BadRow("the text holds no token", kind="empty")
                continue
            found = _within_limit(tokenizer, texts[index], one, limit, on_long)  # type: ignore[arg-type]
            is_cut = not isinstance(found, BadRow) and 0 < len(found["input_ids"]) < len(one["input_ids"])
            encoded[index] = {**found, NOTICES: [cut_notice(limit)]} if is_cut else found  # type: ignore[dict-item]
    return encoded


def _within_limit(tokenizer: Any, texts: Sequence[str], encoded: Tokens, limit: int, on_long: str) -> Tokens | BadRow:
    length = len(encoded["input_ids"])
    if length > limit:
        if on_long == "drop":
            return {"input_ids": []}
        if on_long == "error":
            return BadRow(f"{length} tokens, more than {limit_name(limit)} {limit}", kind="too_long")
        shortened = tokenizer(*texts, truncation=True, max_length=limit, verbose=False)
        return {key: shortened[key] for key in encoded}
    return encoded


_CUT = "only the first "


def cut_notice(limit: int, what: str = "text") -> str:
    """The notice of a row whose end is not read. what: what is cut, such as "text"."""
    return f"{_CUT}{limit} tokens of the {what} were read ({limit_name(limit)})"


def is_cut_notice(notice: str) -> bool:
    """Whether it is one of `cut_notice`."""
    return notice.startswith(_CUT)


def resolve_on_long(on_long: str, *, with_targets: bool) -> str:
    """What happens to a row that is too long: as the options say, but that `drop` is for splits alone.

    A row without targets is to be answered, so it becomes a bad row, which says why there is no answer.
    """
    return "error" if on_long == "drop" and not with_targets else on_long


def row_text(row: Row, role: str) -> str:
    """The text of a role. Raises: BadRow if it is missing, not text, or empty."""
    value = row.get(role)
    if value is None:
        raise BadRow(f"no {role}")
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise BadRow(f"{role} is {type(value).__name__}, not text")
    text = str(value)
    if not text.strip():
        raise BadRow(f"{role} is empty", kind="empty")
    return text


def text_and_pair(row: Row) -> list[str]:
    """[text], or [text, text_pair] where the row has one. Raises: BadRow."""
    texts = [row_text(row, "text")]
    if row.get("text_pair") is not None:
        texts.append(row_text(row, "text_pair"))
    return texts


def shortened(text: str) -> str:
    """At most SHOWN_CHARACTERS of a text, with a mark where it goes on."""
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} ..."


def shown_text(row: Row) -> str | list[str]:
    """The beginning of a row's text, or of both, as they are written; of a row of words all of them."""
    words = row.get("tokens")
    if isinstance(words, (list, tuple)):
        return [str(word) for word in words]
    parts = [str(row[role]) for role in ("text", "text_pair") if row.get(role) is not None]
    return "\n\n".join(map(shortened, parts))


def shown_texts(examples: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """`meta` of a batch whose examples have their texts with them; {} for others."""
    return {SHOWN: [example[SHOWN] for example in examples]} if SHOWN in examples[0] else {}


def training_texts(table: Table) -> Iterator[str]:
    """Texts for a tokenizer that is trained on them."""
    for row in table:
        yield from (str(row[role]) for role in ("text", "text_pair") if row.get(role) is not None)


def input_texts(artifacts: TaskArtifacts, batch: Batch, *, special: bool = False) -> list[str]:
    """Each row's text as it is written, where the examples have it with them; otherwise as the model saw it. Cut to
    SHOWN_CHARACTERS. special: as the model saw it, with marks such as [SEP].
    """
    if SHOWN in batch.meta and not special:
        return list(batch.meta[SHOWN])
    rows = [row.tolist() for row in split_rows(batch.inputs)]
    texts = artifacts.processor.batch_decode(rows, skip_special_tokens=not special)
    return [shortened(text) for text in texts]
