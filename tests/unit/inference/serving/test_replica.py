"""A replica with a model: what requests get is what the answerer says of their rows, however they were batched."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.inference.answering import Chunk, RowError
from finetune.inference.batches import BatchAnswerer
from finetune.inference.recording import record_outcome
from finetune.inference.serving.messages import BatchRun, ModelFacts
from finetune.inference.serving.replica import Replica
from finetune.inference.serving.served_model import ServedModel
from finetune.inference.serving.warm_up import warm_up
from finetune.tasks.batch import RecordOptions
from tests.contract.examples import EXAMPLES
from tests.prepared import Prepared, prepare

WORDS = ["fine", "film", "cold", "the", "best", "year", "dull", "long", "lovely", "warm", "slept"]


def open_task(name: str, folder: Any) -> tuple[Prepared, ServedModel]:
    example = next(example for example in EXAMPLES if example.task == name)
    prepared = prepare(example.recipe(folder))
    torch.manual_seed(0)
    answerer = BatchAnswerer(prepared.task, prepared.artifacts, prepared.build().eval(), torch.device("cpu"))
    card = prepared.task.card
    facts = ModelFacts(
        "tiny", name, roles=dict(card.rows.columns), image="image" if "image" in card.rows.columns else ""
    )
    return prepared, ServedModel(prepared.task, prepared.artifacts, answerer, facts, pixels=10_000)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Prepared, ServedModel]]]:
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield {
            name: open_task(name, folder / name)
            for name in ("text_classification", "image_classification")
            if not (folder / name).mkdir()
        }


def expected(prepared: Prepared, model: ServedModel, rows: list[dict[str, Any]], options: RecordOptions) -> list[Any]:
    encoded = prepared.task.encode(prepared.artifacts, rows, with_targets=False)
    examples = [{**example, "id": index} for index, example in enumerate(encoded)]
    ((_, outcomes),) = model.answerer.run([Chunk((0, 0), examples)])
    return [record_outcome(prepared.task, prepared.artifacts, row, one, options) for row, one in enumerate(outcomes)]


def near(one: Any, other: Any) -> None:
    """Equal, but for the last digits of scores, which depend on the padding."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            near(one[key], other[key])
    elif isinstance(one, list):
        for first, second in zip(one, other, strict=True):
            near(first, second)
    else:
        assert one == (pytest.approx(other, rel=1e-4) if isinstance(one, float) else other)


def test_many_requests_at_once_get_the_answers_of_their_rows(opened: Any) -> None:
    prepared, model = opened["text_classification"]
    draw = np.random.default_rng(0)
    requests = [
        [{"text": " ".join(draw.choice(WORDS, draw.integers(1, 30)))} for _ in range(draw.integers(1, 9))]
        for _ in range(24)
    ]
    runs: list[BatchRun] = []

    async def main() -> list[Any]:
        replica = Replica(model, ran=runs.append)
        answers = await asyncio.gather(*(replica.predict(rows, top_k=2, threshold=None) for rows in requests))
        await replica.close()
        return answers

    answers = asyncio.run(main())
    for rows, records in zip(requests, answers, strict=True):
        near(records, expected(prepared, model, rows, RecordOptions(top_k=2)))
    assert sum(run.rows for run in runs) == sum(map(len, requests))
    assert len(runs) < len(requests), "requests were not batched"


def test_rows_that_cannot_be_encoded_fail_alone(opened: Any) -> None:
    prepared, model = opened["text_classification"]
    rows: list[dict[str, Any]] = [
        *({"text": "fine"}, {"text": " "}, {}, {"text": "\ud800"}, {"text": {"a": 1}}, {"text": "cold"}),
    ]

    async def main() -> list[Any]:
        replica = Replica(model)
        records = await replica.predict(rows, top_k=1, threshold=None)
        await replica.close()
        return records

    records = asyncio.run(main())
    assert [record["row"] for record in records] == list(range(6))
    assert [record.get("error", {}).get("kind") for record in records] == [
        None,
        "empty",
        "bad_row",
        "bad_row",
        "bad_row",
        None,
    ]
    near([records[0], {**records[5], "row": 1}], expected(prepared, model, [rows[0], rows[5]], RecordOptions()))


def test_columns_are_found_as_in_training(opened: Any) -> None:
    """By the recipe's names, by the roles' own, by known aliases; a similar name is a hint."""
    _, model = opened["text_classification"]
    renamed = replace(model, facts=replace(model.facts, columns={"text": "words.en"}))
    for row in (
        {"words": {"en": "fine"}},
        {"text": "fine"},
        {"sentence": "fine"},
        {"text": "fine", "label": "never seen"},
    ):
        (example,) = renamed.encode([row])
        assert isinstance(example, dict), example
        assert "label" not in example
    (error,) = renamed.encode([{"Texts": "fine"}])
    assert isinstance(error, RowError)
    assert error.message == "no text; the row has Texts (is Texts meant to be text?)"


def picture(size: tuple[int, int] = (20, 20)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "PNG")
    return file.getvalue()


def test_an_image_is_bytes_base64_or_a_data_uri(opened: Any) -> None:
    _, model = opened["image_classification"]
    text = base64.b64encode(picture()).decode()
    values: list[Any] = [
        picture(),
        text,
        f"data:image/png;base64,{text}",
        {"bytes": text},
        {"url": f"data:image/png;base64,{text}"},
    ]
    encoded = model.encode([{"image": value} for value in values])
    assert all(isinstance(example, dict) for example in encoded), encoded
    assert all(np.array_equal(example["pixel_values"], encoded[0]["pixel_values"]) for example in encoded)


def test_no_value_names_a_file_of_the_server(opened: Any, tmp_path: Any) -> None:
    _, model = opened["image_classification"]
    path = tmp_path / "secret.png"
    path.write_bytes(picture())
    values: list[Any] = [
        *(str(path), {"path": str(path)}, {"bytes": None, "path": str(path)}, {"url": str(path)}, f"file://{path}"),
        *(
            "http://127.0.0.1/x.png",
            "",
            None,
            3,
            [1, 2],
            {},
            picture()[:40],
            picture((200, 200)),
            "data:,",
            "data:image/png;base64,!",
        ),
    ]
    encoded = model.encode([{"image": value} for value in values])
    assert all(isinstance(item, RowError) for item in encoded)
    assert "200 x 200" in encoded[12].message
    assert all("paths and addresses are not opened" in encoded[place].message for place in (0, 3, 4, 5))


@pytest.mark.parametrize("name", ["text_classification", "image_classification"])
def test_a_made_up_row_warms_the_model_up(opened: Any, name: str) -> None:
    _, model = opened[name]
    ran: list[int] = []

    class Watched:
        cost, budget = model.answerer.cost, model.answerer.budget

        def run(self, chunks: Any) -> Any:
            for chunk, outcomes in model.answerer.run(chunks):
                ran.append(len(outcomes))
                assert not any(isinstance(outcome, RowError) for outcome in outcomes)
                yield chunk, outcomes

    warm_up(replace(model, answerer=Watched()))
    assert ran == [1]


def test_what_is_not_read_of_a_row_is_told_and_a_misspelled_column_is_refused(opened: Any) -> None:
    model = opened["text_classification"][1]
    rows = [
        {"text": "fine", "id": 5},
        {"text": 17},
        {"text": "fine", "text_pairs": "film"},
        {"text": "fine", "text_pair": "film"},
    ]
    unread, number, misspelled, both = model.encode(rows)
    assert unread["notices"] == ["the column id is not read"]
    assert number["notices"] == ["text is a number, read as text"]
    assert isinstance(misspelled, RowError) and "did you mean text_pair?" in misspelled.message
    assert not both.get("notices")


def test_a_row_without_its_text_names_the_key_that_may_be_it(opened: Any) -> None:
    (error,) = opened["text_classification"][1].encode([{"txt": "fine"}])
    assert error.message == "no text; the row has txt (is txt meant to be text?)"
