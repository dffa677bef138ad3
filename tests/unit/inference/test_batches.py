"""The batch answerer: the answers of single rows whatever the chunks, and a row that fails ends only itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from finetune.errors import Halted
from finetune.inference.answering import Answered, Chunk, RowError
from finetune.inference.batches import BatchAnswerer
from finetune.inference.example_cost import TOKENS, ExampleCost, chunk_budget
from finetune.inference.failure_limit import HOPELESS
from tests.contract.examples import EXAMPLES
from tests.prepared import Prepared, prepare

CPU = torch.device("cpu")
TEXTS = ["a fine film", "cold", "the best of the year, by far", "I slept", "long and dull and long", "lovely", "warm"]


class Faulty:
    """A task whose forward pass raises where `fault` says so. batches: the ids of each that it computed."""

    def __init__(self, task: Any, fault: Callable[[Any], Exception | None] = lambda batch: None) -> None:
        self.task, self.fault, self.batches = task, fault, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def forward(self, model: Any, batch: Any) -> Any:
        if (error := self.fault(batch)) is not None:
            raise error
        self.batches.append(batch.ids)
        return self.task.forward(model, batch)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepared]:
    folder = tmp_path_factory.mktemp("texts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        example = next(example for example in EXAMPLES if example.task == "text_classification")
        yield prepare(example.recipe(folder))


@pytest.fixture(scope="module")
def model(prepared: Prepared) -> Any:
    torch.manual_seed(0)
    return prepared.build().eval()


def examples_of(prepared: Prepared, texts: Sequence[str], labels: Sequence[str] = ()) -> list[dict[str, Any]]:
    rows = [{"text": text} for text in texts]
    rows = [{**row, "label": label} for row, label in zip(rows, labels, strict=True)] if labels else rows
    encoded = prepared.task.encode(prepared.artifacts, rows, with_targets=bool(labels))
    return [{"id": index, **row} for index, row in enumerate(encoded)]


def answerer(prepared: Prepared, model: Any, task: Any = None, budget: int | None = None) -> BatchAnswerer:
    return BatchAnswerer(task or prepared.task, prepared.artifacts, model, CPU, asked_budget=budget)


def ask(one: BatchAnswerer, *parts: Sequence[dict[str, Any]]) -> dict[int, Any]:
    chunks = [Chunk((0, number), part) for number, part in enumerate(parts)]
    outcomes = {}
    for (chunk, found), asked in zip(one.run(chunks), chunks, strict=True):
        assert chunk is asked and len(found) == len(chunk.examples)
        outcomes.update(dict(zip([example["id"] for example in chunk.examples], found, strict=True)))
    return outcomes


def scores(outcomes: dict[int, Any]) -> torch.Tensor:
    assert all(isinstance(one, Answered) and one.answer.id == id for id, one in outcomes.items()), outcomes
    return torch.tensor([outcomes[id].answer.values["scores"] for id in sorted(outcomes)])


def test_answers_are_those_of_the_task_whatever_the_chunks(prepared, model):
    examples = examples_of(prepared, TEXTS)
    batch = prepared.task.collate(prepared.artifacts, examples)
    with torch.no_grad():
        expected = prepared.answers(prepared.task.forward(model, batch), batch)
    together = ask(answerer(prepared, model), examples)
    assert [together[index].answer for index in range(len(TEXTS))] == expected
    assert all(one.score is None for one in together.values())
    apart = ask(answerer(prepared, model), examples[4:], [], examples[:1], examples[1:4])
    torch.testing.assert_close(scores(apart), scores(together))


def test_rows_with_labels_are_scored(prepared, model):
    examples = examples_of(prepared, TEXTS[:3], ["good", "bad", "good"])
    found = ask(answerer(prepared, model), examples)
    likely = scores(found).gather(1, torch.tensor([[one["label"]] for one in examples])).log().neg().flatten()
    torch.testing.assert_close(torch.tensor([found[index].score.loss for index in range(3)]), likely)


def test_a_row_that_fails_is_found_by_halving_and_leaves_the_others(prepared, model):
    examples = examples_of(prepared, TEXTS)
    faulty = Faulty(prepared.task, lambda batch: ValueError("no such thing\nmore") if 4 in batch.ids else None)
    found = ask(answerer(prepared, model, faulty), examples)
    assert found.pop(4) == RowError("failed", "ValueError: no such thing")
    expected = ask(answerer(prepared, model), examples)
    del expected[4]
    torch.testing.assert_close(scores(found), scores(expected))
    assert max(map(len, faulty.batches)) == 3 and sorted(id for ids in faulty.batches for id in ids) == sorted(found)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["gpu", "cpu"],
)
def test_a_batch_too_large_for_memory_is_computed_in_pieces_from_then_on(prepared, model, error):
    examples = examples_of(prepared, TEXTS)
    fits = sum(len(one["input_ids"]) for one in examples) // 2

    def fault(batch: Any) -> Exception | None:
        return error if batch.positions - batch.padding > fits else None

    faulty = Faulty(prepared.task, fault)
    one = answerer(prepared, model, faulty)
    found = ask(one, examples, [{**row, "id": row["id"] + 10} for row in examples])
    torch.testing.assert_close(scores(found)[:7], scores(ask(answerer(prepared, model), examples)))
    torch.testing.assert_close(scores(found)[7:], scores(found)[:7])
    assert one.out_of_memory == 1 and one.piece_cost == fits  # remembered: the second chunk never failed
    assert one.budget == TOKENS["cpu"], "what chunks there are does not depend on memory"


def test_a_row_too_large_for_memory_is_an_error_of_its_own(prepared, model):
    examples = examples_of(prepared, TEXTS[:4])
    faulty = Faulty(prepared.task, lambda batch: torch.OutOfMemoryError("no") if 2 in batch.ids else None)
    found = ask(answerer(prepared, model, faulty), examples)
    assert found.pop(2) == RowError("out_of_memory", "the row does not fit into the memory of cpu")
    assert len(scores(found)) == 3


def test_a_chunk_that_cannot_be_collated_is_halved_too(prepared, model):
    examples = examples_of(prepared, TEXTS[:3])
    broken = [*examples[:2], {"id": 2}]
    found = ask(answerer(prepared, model), broken)
    assert found[2].kind == "failed" and "input_ids" in found[2].message
    assert isinstance(found[0], Answered) and isinstance(found[1], Answered)


def test_an_answer_that_is_not_finite_is_an_error(prepared, model):
    broken = prepared.build().eval()
    with torch.no_grad():
        broken.classifier.bias.fill_(float("nan"))
    found = ask(answerer(prepared, broken), examples_of(prepared, TEXTS[:2]))
    assert list(found.values()) == [RowError("failed", "the model's output is not finite")] * 2


def test_a_model_that_fails_on_every_row_ends_the_command(prepared, model):
    examples = examples_of(prepared, ["a"] * (HOPELESS + 8))
    faulty = Faulty(prepared.task, lambda batch: TypeError("forward() got an unexpected keyword"))
    with pytest.raises(Halted, match=r"failed on all of the first 32 rows.*TypeError: forward"):
        ask(answerer(prepared, model, faulty), examples)
    one = answerer(prepared, model, faulty)
    one.failures.answered_elsewhere = lambda: True  # so the error is one of these rows
    assert {outcome.kind for outcome in ask(one, examples).values()} == {"failed"}
    late = Faulty(prepared.task, lambda batch: TypeError("no") if max(batch.ids) > 0 else None)
    found = ask(answerer(prepared, model, late), examples)
    assert [type(one) for one in found.values()] == [Answered] + [RowError] * (HOPELESS + 7)


def test_chunks_that_are_not_there_yet_are_asked_for_again(prepared, model):
    examples = examples_of(prepared, TEXTS[:2])
    done: list[int] = []

    def chunks() -> Iterator[Chunk | None]:
        yield Chunk((0, 0), examples[:1])
        yield None
        assert done == [0], "the first chunk was not handed back before the next one was waited for"
        yield Chunk((0, 1), examples[1:])

    for chunk, _ in answerer(prepared, model).run(chunks()):
        done.append(chunk.name[1])
    assert done == [0, 1]


def test_the_budget_depends_on_options_and_kind_of_device_alone(prepared, model):
    assert answerer(prepared, model).budget == TOKENS["cpu"] and answerer(prepared, model, budget=77).budget == 77
    one = answerer(prepared, model)
    assert one.cost({"input_ids": [1, 2, 3]}) == 3
    assert one.cost({"input_ids": [1, 2, 3], "rejected_input_ids": [1]}) == 4
    assert ExampleCost(pixels=600)({"row": {}}) == 600 and ExampleCost(written=8)({"input_ids": [1]}) == 9
    assert chunk_budget(prepared.task, "cpu") < chunk_budget(prepared.task, "cuda")
