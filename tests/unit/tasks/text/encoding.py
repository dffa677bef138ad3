"""Encoding of conversations in tests: an encoder for a chat template, and what it makes of a row."""

from __future__ import annotations

from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.tasks.text.chat import ensure_template
from finetune.tasks.text.row_formats import RowEncoder
from tests.unit.tasks.text.templates import SIMPLE, make_tokenizer


def row_encoder(template: str | None = SIMPLE, *, bos: str | None = None, **options: Any) -> RowEncoder:
    tokenizer = make_tokenizer(template, bos=bos)
    own = ensure_template(tokenizer, plain=False)
    settings = {"form": "auto", "system": "", "train_on": "reply", "limit": 1000, "on_long": "truncate", **options}
    return RowEncoder(tokenizer, own_template=own, **settings)


def shown(encoder: RowEncoder, row: dict[str, Any], *, with_targets: bool = True) -> tuple[str, list[str], list[str]]:
    """(text, supervised texts, notices) of a row. Raises: BadRow."""
    example = encoder.encode([row], with_targets=with_targets)[0]
    if isinstance(example, BadRow):
        raise example
    ids, edges = example["input_ids"], example.get("spans", [])
    spans = [encoder.tokenizer.decode(ids[start:end]) for start, end in zip(edges[::2], edges[1::2], strict=True)]
    return encoder.tokenizer.decode(ids), spans, example["notices"]
