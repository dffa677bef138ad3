"""Every task answers rows that hold only what the model is asked: encode, collate, forward and decode, without targets."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune.data.bad_rows import BadRow
from finetune.data.sources.tables import open_tables
from finetune.tasks import CARDS
from finetune.tasks.batch import RecordOptions
from finetune.tasks.task import merge_texts
from tests.contract.examples import EXAMPLES, TinyExample
from tests.prepared import Prepared, prepare

torch.set_num_threads(1)


def read(example: TinyExample, folder: Path, **changes: Any) -> tuple[Prepared, list[dict[str, Any]]]:
    """The task with its training data as validation data as well, and the rows."""
    data = example.write(folder)
    values = example.recipe(folder, data={**data, "validation": data["train"]}, **changes)
    prepared = prepare(values)
    table = open_tables(prepared.plan.recipe, prepared.task.card)["validation"]
    return prepared, [dict(row) for row in table]


def asked(task: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """The row without what is to be learned from it."""
    kept = {role: value for role, value in row.items() if role not in CARDS[task].rows.targets}
    if task == "causal_lm" and kept.get("messages"):
        kept["messages"] = kept["messages"][:-1]
    return kept


def encode(prepared: Prepared, rows: list[dict[str, Any]], *, with_targets: bool) -> list[dict[str, Any]]:
    """Usable examples with ids, as the loader collates them."""
    encoded = prepared.task.encode(prepared.artifacts, rows, with_targets=with_targets)
    assert len(encoded) == len(rows) and not [one for one in encoded if isinstance(one, BadRow)]
    return [{"id": index, **one} for index, one in enumerate(encoded)]


def is_plain(value: Any) -> bool:
    """Whether a value consists of Python's own types alone, as JSON and gathering over ranks need it."""
    if type(value) is dict:
        return all(type(key) is str and is_plain(item) for key, item in value.items())
    if type(value) in (list, tuple):
        return all(map(is_plain, value))
    return value is None or type(value) in (str, int, float, bool)


def same(one: Any, other: Any) -> bool:
    """Whether two batches' values are equal, tensors and arrays element by element."""
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(np.array_equal(one, other))


def test_every_task_says_what_its_targets_are() -> None:
    assert set(CARDS) == {example.task for example in EXAMPLES}
    for card in CARDS.values():
        assert card.rows.targets and set(card.rows.targets) <= set(card.rows.columns)


def test_rows_without_targets_are_answered_in_order(example: TinyExample, tmp_path: Path) -> None:
    prepared, rows = read(example, tmp_path)
    task, artifacts = prepared.task, prepared.artifacts
    examples = encode(prepared, [asked(example.task, row) for row in rows], with_targets=False)
    batch = task.collate(artifacts, examples)
    assert batch.targets == {} and "labels" not in batch.inputs
    assert batch.ids == tuple(range(8)) and 0 <= batch.padding < batch.positions
    model = prepared.build().eval()
    with torch.no_grad():
        answers = prepared.answers(task.forward(model, batch), batch)
        backwards = task.collate(artifacts, examples[::-1])
        reversed_answers = prepared.answers(task.forward(model, backwards), backwards)
        if hasattr(task, "generate"):
            written = task.generate(artifacts, model, batch, synced=False)
            assert [row.keys() for row in written] == [{"text"}] * 8
            assert all(type(row["text"]) is str for row in written)
    assert [answer.id for answer in answers] == list(range(8))
    assert [answer.id for answer in reversed_answers] == list(range(7, -1, -1))
    for answer, again in zip(answers, reversed_answers[::-1], strict=True):
        assert answer.values or answer.shown
        assert is_plain(answer.values) and is_plain(answer.shown)
        assert answer.shown == again.shown and answer.values.keys() == again.values.keys()
        assert answer.values.get("prediction") == again.values.get("prediction")


def fits(value: Any, field: Any) -> bool:
    """Whether a JSON value is what its field says; see tasks/records.py."""
    if value is None:
        return True
    if isinstance(field, list):
        return type(value) is list and all(fits(item, field[0]) for item in value)
    if isinstance(field, Mapping):
        return type(value) is dict and value.keys() <= field.keys() and all(fits(value[k], field[k]) for k in value)
    return type(value) is {"text": str, "number": float, "integer": int, "truth": bool}[field]


def test_every_answer_becomes_a_record_of_the_fields_that_were_said_before(
    example: TinyExample, tmp_path: Path
) -> None:
    prepared, rows = read(example, tmp_path)
    task, artifacts = prepared.task, prepared.artifacts
    options = RecordOptions(threshold=0.0) if example.task == "object_detection" else RecordOptions()
    fields = task.record_fields(artifacts, options)
    batch = task.collate(artifacts, encode(prepared, [asked(example.task, row) for row in rows], with_targets=False))
    model = prepared.build().eval()
    with torch.no_grad():
        answers = prepared.answers(task.forward(model, batch), batch)
        if hasattr(task, "generate"):
            answers = merge_texts(answers, task.generate(artifacts, model, batch, synced=False))
    for answer in answers:
        record = task.record(artifacts, answer, options)
        assert record and record.keys() <= fields.keys() and fits(record, fields), (record, fields)
        assert any(value not in (None, []) for value in record.values())
        assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_rows_that_are_asked_need_no_targets(example: TinyExample) -> None:
    card = CARDS[example.task]
    needed = {role for roles in card.for_asking().rows.required for role in roles}
    assert needed and needed <= set(card.rows.columns) | set(card.rows.asked_columns)


def test_targets_change_no_input(example: TinyExample, tmp_path: Path) -> None:
    """What the model is asked is the same with and without targets; of writing tasks it is where the reply begins."""
    prepared, rows = read(example, tmp_path)
    whole = encode(prepared, rows, with_targets=True)
    alone = encode(prepared, [asked(example.task, row) for row in rows], with_targets=False)
    for row, one, other in zip(rows, whole, alone, strict=True):
        if "reply_start" in other:
            prompt = len(other["input_ids"])
            assert other["reply_start"] == prompt
            assert list(one["input_ids"][:prompt]) == list(other["input_ids"])
            if row.get("text") is None:  # plain text is a prompt in full; there is no reply to separate
                assert prompt == (one["reply_start"] if example.task == "causal_lm" else one["span"][0])
        else:
            assert one.keys() > other.keys() or example.task == "reward_model"
            assert same({key: one[key] for key in other}, other)


def test_encoding_rows_gives_what_a_split_holds(example: TinyExample, tmp_path: Path) -> None:
    """A split goes through the cache, and images are decoded when they are fetched: the batch is the same."""
    prepared, rows = read(example, tmp_path)
    task, artifacts = prepared.task, prepared.artifacts
    batch = task.collate(artifacts, encode(prepared, rows, with_targets=True))
    held = prepared.batch(split="validation")
    assert batch.ids == held.ids and (batch.padding, batch.positions) == (held.padding, held.positions)
    assert same(batch.inputs, held.inputs) and same(batch.targets, held.targets)
    assert task.weight(batch) == task.weight(held) > 0


def test_answers_need_no_targets(example: TinyExample, tmp_path: Path) -> None:
    if example.task in ("causal_lm", "preference", "seq2seq", "reward_model"):
        pytest.skip("with targets the model reads the reply, or the other reply, as well")
    prepared, rows = read(example, tmp_path)
    model, answers = prepared.build().eval(), []
    for with_targets in (True, False):
        batch = prepared.task.collate(prepared.artifacts, encode(prepared, rows, with_targets=with_targets))
        with torch.no_grad():
            answers.append(prepared.answers(prepared.task.forward(model, batch), batch))
    assert answers[0] == answers[1]


def test_a_row_that_cannot_be_used_says_why_and_leaves_the_others(example: TinyExample, tmp_path: Path) -> None:
    prepared, rows = read(example, tmp_path)
    reasons, mixed = example.unusable, [asked(example.task, rows[0])]
    for bad, _ in reasons:
        mixed += [bad, mixed[0]]
    encoded = prepared.task.encode(prepared.artifacts, mixed, with_targets=False)
    assert [isinstance(one, BadRow) for one in encoded] == [False, *[True, False] * len(reasons)]
    assert all(same(one, encoded[0]) for one in encoded[2::2])
    for bad, (row, reason) in zip(encoded[1::2], reasons, strict=True):
        assert re.search(reason, str(bad)), f"{row}: {bad}"


def test_a_row_without_its_target_is_a_bad_row_where_targets_are_read(example: TinyExample, tmp_path: Path) -> None:
    prepared, rows = read(example, tmp_path)
    asked_rows = [asked(example.task, row) for row in rows if not (row.get("text") and example.task == "causal_lm")]
    encoded = prepared.task.encode(prepared.artifacts, [*asked_rows, rows[0]], with_targets=True)
    bad, usable = encoded[:-1], encoded[-1]
    if example.task == "causal_lm":  # a shorter conversation still holds a reply
        bad = [one for one, row in zip(bad, asked_rows, strict=True) if not row.get("messages")]
    assert len(bad) >= 6 and all(isinstance(one, BadRow) and str(one) for one in bad)
    assert not isinstance(usable, BadRow)


@pytest.mark.parametrize("on_long", ["drop", "error", "truncate"])
def test_a_row_that_is_too_long_is_never_an_empty_example(example: TinyExample, tmp_path: Path, on_long: str) -> None:
    """`drop` leaves rows out of a split; a row that is to be answered is a bad row instead."""
    if example.long_row is None:
        pytest.skip("images have no length")
    options, row = example.long_row
    prepared, _ = read(example, tmp_path, options={**example.options, **options, "on_long": on_long})
    (encoded,) = prepared.task.encode(prepared.artifacts, [row], with_targets=False)
    if example.task in ("causal_lm", "preference"):  # a prompt without its end is another question
        assert isinstance(encoded, BadRow) and "tokens, longer than the limit: options.max_length" in str(encoded)
    elif on_long == "truncate":
        assert not isinstance(encoded, BadRow) and len(encoded["input_ids"]) == next(iter(options.values()))
    else:
        assert isinstance(encoded, BadRow) and "tokens, more than options.max_" in str(encoded)
