"""A replica that cuts large images and long texts says what `finetune.load(...).predict` says of the same rows."""

from __future__ import annotations

import asyncio
import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.app.asked_model import AskedModel, open_model
from finetune.app.loaded import LoadedModel
from finetune.app.workers.serve import serve_asked
from finetune.data.images import read_image
from finetune.errors import UserError
from finetune.inference.pieces import images
from finetune.inference.serving.messages import BatchRun
from finetune.inference.serving.piece_room import ROWS_AT_ONCE, PieceRoom
from finetune.inference.serving.replica import Replica
from tests.contract.examples import EXAMPLES
from tests.prepared import prepare
from tests.stored_runs import store_run, trained_like
from tests.unit.inference.serving.test_replica import near

torch.set_num_threads(1)
PIXELS = 100_000
IMAGE = {"tile": 32, "overlap": 0.25}
TEXT = {"block": 12, "stride": 4}
OPTIONS = {
    "object_detection": {**IMAGE, "threshold": 0.0},
    "image_classification": {**IMAGE, "merge": "max", "top_k": 2},
    "text_classification": {**TEXT, "top_k": 2},
    "token_classification": TEXT,
    "sequence_regression": TEXT,
}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], AskedModel]]:
    made: dict[str, AskedModel] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))

        def open_one(task: str) -> AskedModel:
            if task not in made:
                folder = tmp_path_factory.mktemp(task)
                example = next(example for example in EXAMPLES if example.task == task)
                limit = {} if "image" in example.task or "detection" in example.task else {"max_length": 16}
                prepared = prepare(example.recipe(folder, options={**example.options, **limit}))
                made[task] = open_model(store_run(prepared, trained_like(prepared.build()), folder))
            return made[task]

        yield open_one


def png(seed: int, width: int, height: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def rows_of(task: str) -> list[dict[str, Any]]:
    """Short and long ones, and one that is none."""
    if task in ("object_detection", "image_classification"):
        sizes = [(90, 70), (20, 20), (33, 32), (32, 120)]
        return [{"image": png(seed, *size)} for seed, size in enumerate(sizes)] + [{"image": png(9, 90, 70)[:900]}]
    draw = np.random.default_rng(0)
    words = [draw.choice(["fine", "film", "cold", "year", "dull"], count).tolist() for count in (3, 60, 30, 9)]
    if task == "token_classification":
        return [{"tokens": one} for one in words] + [{"tokens": []}]
    return [{"text": " ".join(one)} for one in words] + [{"text": ""}]


def ask(model: Any, rows: list[dict[str, Any]], runs: list[BatchRun], *, times: int = 1, **options: Any) -> list[Any]:
    """The records of `times` requests at once."""

    async def main() -> list[Any]:
        replica = Replica(model, ran=runs.append)
        asked = [replica.predict(rows, **{"top_k": 1, "threshold": None, **options}) for _ in range(times)]
        answers = await asyncio.gather(*asked)
        await replica.close()
        return answers

    return asyncio.run(main())


@pytest.mark.parametrize("task", OPTIONS)
def test_answers_are_those_of_python(opened: Any, task: str) -> None:
    asked, options = opened(task), OPTIONS[task]
    pieces = {key: value for key, value in options.items() if key not in ("threshold", "top_k")}
    rest = {key: value for key, value in options.items() if key in ("threshold", "top_k")}
    rows, runs = rows_of(task), list[BatchRun]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = LoadedModel(asked).predict(rows, **options)
    served = serve_asked(asked, pixels=PIXELS, pieces=pieces)
    cut = [isinstance(item, list) and len(item) > 1 for item in served.split(rows)]
    for records in ask(served, rows, runs, times=3, **rest):
        told = [record.pop("notices", []) for record in records]
        near(records, expected)
        assert [bool(notices) for notices in told] == cut and 2 <= sum(cut) < len(rows)
    answered = [record for record in expected if "error" not in record]
    assert len(answered) == len(rows) - 1
    assert sum(run.rows for run in runs) > 3 * len(rows), "rows were cut"
    assert len(runs) < sum(run.rows for run in runs), "pieces share chunks"


def test_an_image_is_decoded_once_for_all_of_its_tiles(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the tiles of two requests come in turns, and where it cannot be decoded. What waits holds no pixels."""
    decoded: list[Any] = []
    monkeypatch.setattr(images, "read_image", lambda *given: decoded.append(given) or read_image(*given))
    model = serve_asked(opened("image_classification"), pixels=PIXELS, pieces=IMAGE)
    large = {"image": png(0, 90, 70)}
    assert all(images.ROW in example and "pixel_values" not in example for example in model.split([large])[0])
    broken = {"image": large["image"][:900]}
    records = ask(model, [large, broken], [])[0]
    assert "label" in records[0] and records[1]["error"]["message"].startswith("the whole image: broken image")
    assert len(decoded) == 2
    assert model.pieces is not None and not model.pieces._splitter._kept  # of this thread


def test_pieces_that_wait_are_bounded_whatever_the_rows_become(opened: Any) -> None:
    model = serve_asked(opened("text_classification"), pixels=PIXELS, pieces=TEXT)
    rows = [{"text": "cold dull film " * (12 + number)} for number in range(20)]
    alone = [len(item) for item in model.split(rows)]
    held: list[int] = []

    async def main(most: int) -> list[Any]:
        replica = Replica(model)
        replica._room = PieceRoom(most)
        put = replica._batcher.put
        replica._batcher.put = lambda *given: held.append(replica._room.count) or put(*given)  # type: ignore[method-assign]
        first, second = (
            replica.predict(rows, top_k=1, threshold=None),
            replica.predict(rows[:3], top_k=1, threshold=None),
        )
        answers = await asyncio.gather(first, second)
        assert replica._room.count == 0
        await replica.close()
        return answers

    bounded, free = asyncio.run(main(most := 2 * max(alone) * ROWS_AT_ONCE)), asyncio.run(main(10**6))
    near(bounded[0], free[0])
    near(bounded[1], free[0][:3])
    assert len(held) == 12 and max(held[:6]) <= most < max(held[6:]) <= sum(alone) + sum(alone[:3]), held


def test_room_is_given_in_turn_and_back() -> None:
    async def main() -> list[str]:
        room, order = PieceRoom(10), list[str]()

        async def take(name: str, amount: int) -> None:
            async with room.hold(amount):
                order.append(name)
                assert room.count <= 10 or room.count == amount == 50
                await asyncio.sleep(0.001)

        given_up = asyncio.ensure_future(take("given up", 10))
        waiting = [asyncio.ensure_future(take(name, size)) for name, size in (("a", 8), ("b", 50), ("c", 1), ("d", 9))]
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.gather(*waiting)
        assert room.count == 0
        return order

    assert [name for name in asyncio.run(main()) if name != "given up"] == ["a", "b", "c", "d"]


def test_a_row_of_too_many_pieces_is_an_error_of_its_own(opened: Any) -> None:
    """A line of one pixel's height costs as many forward passes as a large image: it is not even cut."""
    model = serve_asked(opened("image_classification"), pixels=PIXELS, pieces={**IMAGE, "most_pieces": 8})
    long, small = model.split([{"image": png(0, 10_000, 1)}, {"image": png(1, 50, 50)}])
    assert long.kind == "too_long" and long.message == "it would be cut into 417 pieces, more than the limit of 8"
    assert isinstance(small, list) and len(small) == 5  # 4 tiles and the whole image
    model = serve_asked(opened("token_classification"), pixels=PIXELS, pieces={**TEXT, "most_pieces": 8})
    (long,) = model.split([{"tokens": ["fine"] * 200}])
    assert long.kind == "too_long" and "more than the limit of 8" in long.message


def test_options_that_do_not_fit_are_told_before_the_first_request(opened: Any) -> None:
    with pytest.raises(UserError, match="not for text_classification"):
        serve_asked(opened("text_classification"), pixels=PIXELS, pieces=IMAGE)
    assert serve_asked(opened("text_classification"), pixels=PIXELS).pieces is None
    notes = serve_asked(opened("image_classification"), pixels=PIXELS, pieces=IMAGE).facts.notes
    assert notes[-1] == "images larger than 32 pixels are answered in tiles (--tile)"
