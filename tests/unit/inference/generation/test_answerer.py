"""Tests that chunks are answered whole and in any order, that the batch does not drain at their borders, and that sampled
texts do not depend on who answers which chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from finetune.inference.answering import Answered, Chunk, RowError
from finetune.inference.generation.answerer import GenerationAnswerer
from finetune.inference.generation.opening import open_generator, token_logprobs
from finetune.inference.generation.requests import GenerationSettings
from finetune.tasks.causal_lm.task import TASK
from tests.unit.inference.generation.models import artifacts, letters, llama
from tests.unit.inference.generation.test_continuous import as_trained, generated

SHAPE = {"max_length": 96, "packing": "padding_free", "capacity": 96}


def example(row: int, prompt: list[int]) -> dict[str, Any]:
    return {"id": row, "input_ids": np.array(prompt, np.int32), "reply_start": len(prompt)}


def chunks(rows: int = 24, size: int = 4) -> list[Chunk]:
    examples = [example(row, [3 + row, 7, 9, 11 + row][: 1 + row % 4]) for row in range(rows)]
    return [Chunk((0, start // size), examples[start : start + size]) for start in range(0, rows, size)]


@pytest.fixture
def model() -> Any:
    return as_trained(llama())


@pytest.fixture
def generator(model: Any) -> Iterator[Any]:
    opened = open_generator(artifacts(), model)
    yield opened
    opened.close()


def answerer(model: Any, generator: Any, **settings: Any) -> GenerationAnswerer:
    asked = GenerationSettings(**{"new_tokens": 16, **settings})
    return GenerationAnswerer(TASK, artifacts(**SHAPE), model, generator, asked)


def texts(found: list[tuple[Chunk, list[Any]]]) -> dict[int, str]:
    return {one.answer.id: one.answer.values["text"] for _, outcomes in found for one in outcomes}


def test_every_row_is_answered_as_generate_does(model: Any) -> None:
    asked = chunks()
    expected = {
        one["id"]: letters().decode(generated(model, one["input_ids"].tolist()), skip_special_tokens=True).strip()
        for chunk in asked
        for one in chunk.examples
    }
    generator = open_generator(artifacts(), model)
    try:
        found = list(answerer(model, generator).run(asked))
    finally:
        generator.close()
    assert texts(found) == expected
    assert sorted(chunk.name for chunk, _ in found) == [chunk.name for chunk in asked]
    for chunk, outcomes in found:
        assert [one["id"] for one in chunk.examples] == [outcome.answer.id for outcome in outcomes]
        assert {outcome.answer.values["finish_reason"] for outcome in outcomes} <= {"stop", "length"}


def test_the_next_chunk_is_taken_while_others_are_written(model: Any, generator: Any) -> None:
    taken: list[int] = []

    def source() -> Iterator[Chunk]:
        for chunk in chunks(48, 2):
            taken.append(chunk.name[1])
            yield chunk

    writing = answerer(model, generator).run(source())
    next(writing)
    assert 2 * len(taken) >= generator.slots  # they were there before the first chunk was done
    assert len(taken) < 24  # and the others are left to other ranks
    writing.close()  # a caller that stops leaves no request behind
    assert generator.submit([5], GenerationSettings(new_tokens=2)).wait(30)


def test_an_empty_source_and_an_empty_chunk(model: Any, generator: Any) -> None:
    asked = answerer(model, generator)
    assert list(asked.run([])) == []
    assert list(asked.run([Chunk((0, 0), [])])) == [(Chunk((0, 0), []), [])]


def test_bad_rows_end_only_themselves(model: Any, generator: Any) -> None:
    rows = [example(0, [5, 6]), example(1, []), example(2, [5] * 120), example(3, [7])]
    ((_, outcomes),) = answerer(model, generator).run([Chunk((0, 0), rows)])
    assert [one.kind if isinstance(one, RowError) else "" for one in outcomes] == ["", "empty", "too_long", ""]


def test_logprobs_are_listed_with_their_tokens(model: Any, generator: Any) -> None:
    ((_, outcomes),) = answerer(model, generator, logprobs=True, temperature=0.8).run(chunks(4, 4))
    for outcome in outcomes:
        values = outcome.answer.values
        written = "".join(
            one["token"] for one in values["logprobs"] if one["token"] not in ("<end>", "<turn>", "<pad>")
        )
        assert written.strip() == values["text"] and len(values["logprobs"]) > 0
        assert all(one["logprob"] < 0 for one in values["logprobs"])


@pytest.mark.parametrize("ranks", [2, 3])
def test_sampled_texts_do_not_depend_on_who_answers(model: Any, generator: Any, ranks: int) -> None:
    settings = {"temperature": 1.1, "top_k": 20, "seed": 3}
    whole = texts(list(answerer(model, generator, **settings).run(chunks())))
    parts: dict[int, str] = {}
    for rank in reversed(range(ranks)):
        parts |= texts(list(answerer(model, generator, **settings).run(chunks(24, 3)[rank::ranks])))
    assert parts == whole
    assert len(set(whole.values())) > 12


def test_expected_replies_are_scored(model: Any, generator: Any) -> None:
    rows = []
    for row in range(10):
        ids = [3 + row, 7, 9, 20, 21 + row, 1]
        rows.append({"id": row, "input_ids": np.array(ids, np.int32), "reply_start": 3, "spans": np.array([3, 6])})
    ((_, outcomes),) = answerer(model, generator).run([Chunk((0, 0), rows)])
    for row, outcome in zip(rows, outcomes, strict=True):
        assert isinstance(outcome, Answered) and outcome.score is not None
        with generator.exclusively():
            expected = token_logprobs(model, row["input_ids"][:3].tolist(), row["input_ids"][3:].tolist())
        assert math.isclose(outcome.score.loss, -sum(expected), rel_tol=1e-4)
        assert outcome.score.weight == 3
        assert outcome.score.reference["reference_text"] == letters().decode(row["input_ids"][3:5]).strip()


def test_costs_count_the_reply(model: Any) -> None:
    one = answerer(model, SimpleNamespace(slots=4))
    assert one.cost(example(0, [5, 6, 7])) == 3 + 16
    assert one.budget >= one.cost(example(0, [5] * 80))


def test_work_is_finished_before_a_chunk_is_waited_for(model: Any, generator: Any) -> None:
    given, back = [0], [0]

    def source() -> Iterator[Chunk | None]:
        for chunk in chunks(12, 2):
            yield None
            assert given == back  # here a queue may wait
            given[0] += 1
            yield chunk
        yield None

    for _ in answerer(model, generator).run(source()):
        back[0] += 1
    assert back == [6]


def scored_rows(count: int) -> list[dict[str, Any]]:
    rows = [[3 + row, 7, 9, 20, 21 + row, 1] for row in range(count)]
    return [
        {"id": row, "input_ids": np.array(ids, np.int32), "reply_start": 3, "spans": np.array([3, 6])}
        for row, ids in enumerate(rows)
    ]


class Failing:
    """The task, but for a forward pass that raises where `fault` says so. sizes: of the batches that were computed."""

    def __init__(self, fault: Callable[[Any], Exception | None]) -> None:
        self.fault, self.sizes = fault, []

    def __getattr__(self, name: str) -> Any:
        return getattr(TASK, name)

    def forward(self, model: Any, batch: Any) -> Any:
        if (error := self.fault(batch)) is not None:
            raise error
        self.sizes.append(len(batch.ids))
        return TASK.forward(model, batch)


def scoring(model: Any, generator: Any, fault: Callable[[Any], Exception | None], rows: int) -> tuple[Failing, Any]:
    task, settings = Failing(fault), GenerationSettings(new_tokens=4)
    one = GenerationAnswerer(task, artifacts(**SHAPE), model, generator, settings)
    ((_, outcomes),) = one.run([Chunk((0, 0), scored_rows(rows))])
    return task, outcomes


def test_scores_that_do_not_fit_into_memory_are_computed_in_halves_from_then_on(model: Any, generator: Any) -> None:
    _, expected = scoring(model, generator, lambda batch: None, 16)
    full = RuntimeError("DefaultCPUAllocator: can't allocate memory")
    task, outcomes = scoring(model, generator, lambda batch: full if len(batch.ids) > 2 else None, 16)
    assert task.sizes == [2] * 8
    for outcome, whole in zip(outcomes, expected, strict=True):
        assert math.isclose(outcome.score.loss, whole.score.loss, rel_tol=1e-5)


def test_an_expected_reply_that_cannot_be_scored_ends_only_its_row(model: Any, generator: Any) -> None:
    for error, kind in (MemoryError(), "out_of_memory"), (ValueError("odd"), "failed"):
        _, outcomes = scoring(model, generator, lambda batch, error=error: error if 5 in batch.ids else None, 8)
        assert [index for index, one in enumerate(outcomes) if not isinstance(one, Answered)] == [5]
        assert outcomes[5].kind == kind and "expected reply cannot be scored" in outcomes[5].message
        assert all(one.score is not None for index, one in enumerate(outcomes) if index != 5)
