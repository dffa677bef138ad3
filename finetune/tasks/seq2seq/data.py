"""Rows of sequence-to-sequence tasks as examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.prepare.notices import KEY as NOTICES
from finetune.data.table import Row, Table
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.text.inputs import SHOWN, cut_notice, encode_each, resolve_on_long, row_text, shortened
from finetune.tasks.text.limits import KEY as LIMITED_BY
from finetune.tasks.text.limits import SOURCE_OPTION, Limit

TOO_LONG: dict[str, Any] = {"input_ids": [], "labels": []}


def encode_rows(artifacts: TaskArtifacts, rows: Sequence[Row], *, with_targets: bool) -> list[dict[str, Any] | BadRow]:
    """{"input_ids"} per row and with targets {"labels", "shown"}, both ended by the end-of-text token; or a BadRow."""
    options, settings = artifacts.options, artifacts.settings
    read = encode_each(rows, lambda row: _read(row, options.prefix, with_targets))
    usable = [item for item in read if not isinstance(item, BadRow)]
    sources = iter(_tokenize(artifacts.processor, [source for source, _ in usable], as_target=False))
    targets = iter(_tokenize(artifacts.processor, [text for _, text in usable if text is not None], as_target=True))
    on_long = resolve_on_long(options.on_long, with_targets=with_targets)
    examples: list[dict[str, Any] | BadRow] = []
    for row, item in zip(rows, read, strict=True):
        if isinstance(item, BadRow):
            examples.append(item)
            continue
        limits = {
            "source": Limit(settings["max_source_length"], settings.get(LIMITED_BY, SOURCE_OPTION)),
            "target": Limit(options.max_target_length, "options.max_target_length"),
        }
        ids = {"source": next(sources), **({"target": next(targets)} if with_targets else {})}
        example = _within_limits(ids, limits, on_long)
        if not isinstance(example, BadRow) and example["input_ids"] and (cuts := _describe_cuts(ids, limits)):
            example = {**example, NOTICES: cuts}
        if with_targets and not isinstance(example, BadRow):
            example = {**example, SHOWN: written_texts(row)}
        examples.append(example)
    return examples


def _read(row: Row, prefix: str, with_targets: bool) -> tuple[str, str | None]:
    return prefix + row_text(row, "source"), row_text(row, "target") if with_targets else None


def _tokenize(tokenizer: Any, texts: list[str], *, as_target: bool) -> list[list[int]]:
    """Token ids of each text, ended by the end-of-text token."""
    if not texts:
        return []
    encoded = tokenizer(text_target=texts, verbose=False) if as_target else tokenizer(texts, verbose=False)
    eos = tokenizer.eos_token_id
    return [list(ids) if eos is None or (ids and ids[-1] == eos) else [*ids, eos] for ids in encoded["input_ids"]]


def _within_limits(ids: dict[str, list[int]], limits: dict[str, Limit], on_long: str) -> dict[str, Any] | BadRow:
    """Both sides within their limits. The end mark stays, so that the model learns to end."""
    kept = {}
    for name, tokens in ids.items():
        limit = limits[name]
        if len(tokens) > limit and on_long == "drop":
            return TOO_LONG
        if len(tokens) > limit and on_long == "error":
            return BadRow(f"{name}: {len(tokens)} tokens, more than {limit.name} {limit}", kind="too_long")
        kept[name] = tokens if len(tokens) <= limit else [*tokens[: limit - 1], tokens[-1]]
    return {"input_ids": kept["source"], **({"labels": kept["target"]} if "target" in kept else {})}


def _describe_cuts(ids: dict[str, list[int]], limits: dict[str, Limit]) -> list[str]:
    names = {"source": "text", "target": "expected text"}
    return [cut_notice(limits[name], what=names[name]) for name, tokens in ids.items() if len(tokens) > limits[name]]


def written_texts(row: Row) -> dict[str, str]:
    """The beginning of the source, and the target in full, as they are written: what is generated is compared with it."""
    return {"source": shortened(row_text(row, "source")), "target": row_text(row, "target")}


def training_texts(table: Table) -> Iterator[str]:
    """Training texts for a tokenizer that is trained on them."""
    for row in table:
        yield from (str(row[role]) for role in ("source", "target") if row.get(role) is not None)


def source_and_target(example: dict[str, Any]) -> int:
    """Tokens of both."""
    return len(example["input_ids"]) + len(example["labels"])
