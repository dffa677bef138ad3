"""A target that cannot be read costs the metrics of its row, told and counted, and never its answer: for every task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.data.bad_rows import BadRow
from finetune.data.prepare.notices import Notices
from finetune.data.sources.streams import MemoryStream
from finetune.inference.pieces.options import PieceOptions
from finetune.inference.pieces.splitter import make_splitter
from finetune.inference.prediction.feeder import Asked, encode_window, read_windows
from tests.contract.examples import EXAMPLES
from tests.prepared import Prepared, prepare

BROKEN: dict[str, Any] = {
    "an object": {"a": {"b": [1]}},
    "a list": [[["x"], {"y": 1}]],
    "half of a character": "cut \ud800",
    "not finite": float("nan"),
    "true": True,
}
BOXES: dict[str, Any] = {
    "of no area": {"bbox": [[5, 5, 0, 3]], "category": ["red"]},
    "outside of the image": {"bbox": [[500, 500, 30, 30]], "category": ["red"]},
    "of three numbers": {"bbox": [[5, 5, 3]], "category": ["red"]},
    "of text": {"bbox": [["a", 5, 3, 3]], "category": ["red"]},
    "without a category": {"bbox": [[5, 5, 8, 8]], "category": []},
    "not numbers": {"bbox": [[float("nan"), 5, 8, 8]], "category": ["red"]},
}
TASKS = [example.task for example in EXAMPLES]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """task -> (what it derived from its rows, the rows)."""
    made: dict[str, tuple[Prepared, list[dict[str, Any]]]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))

        def open_one(task: str) -> tuple[Prepared, list[dict[str, Any]]]:
            if task not in made:
                folder = tmp_path_factory.mktemp(task)
                recipe = next(example for example in EXAMPLES if example.task == task).recipe(folder)
                made[task] = prepare(recipe), rows_of(recipe["data"])
            return made[task]

        yield open_one


def rows_of(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of its training data."""
    if isinstance(data["train"], list):
        source = Path(data["train"][0]["source"])
        return [json.loads(line) for line in source.read_text().splitlines()]
    sides = [Path(data["train"].replace("{de,en}", side)).read_text().splitlines() for side in ("de", "en")]
    return [{"source": one, "target": other} for one, other in zip(*sides, strict=True)]


def ask(prepared: Prepared, rows: list[dict[str, Any]], options: PieceOptions | None = None) -> tuple[Any, str]:
    """(the examples of each row as a model gets them, what was told)"""
    card = prepared.task.card
    splitter = make_splitter(prepared.task, prepared.artifacts, options)
    asked, notices = Asked(MemoryStream(rows, card), card, splitter, len, 10), Notices()
    ((read, _),) = read_windows(asked)
    loaded = [splitter.load(item) if isinstance(item, list) else item for item in encode_window(asked, read, notices)]
    return loaded, "\n".join(notices.lines())


@pytest.mark.parametrize("task", TASKS)
def test_a_broken_target_costs_no_answer(opened: Any, task: str) -> None:
    prepared, rows = opened(task)
    targets = [role for role in prepared.task.card.rows.targets if role in rows[0]]
    if not targets:
        pytest.skip("its rows are conversations: what is asked and what is answered are in one column")
    for role in targets:
        broken = [{**rows[0], role: value} for value in BROKEN.values()]
        loaded, told = ask(prepared, [rows[0], *broken])
        for kind, item in zip(("itself", *BROKEN), loaded, strict=True):
            assert isinstance(item, list) and not isinstance(item[0], BadRow), (role, kind, item)
        if not isinstance(rows[0][role], str) or task.endswith("classification"):
            assert "answered without its target" in told, (role, told)


@pytest.mark.parametrize("options", [None, PieceOptions(tile=32)], ids=["whole", "tiles"])
def test_a_bad_box_costs_no_answer(opened: Any, options: Any) -> None:
    prepared, rows = opened("object_detection")
    loaded, told = ask(prepared, [{**rows[0], "objects": objects} for objects in BOXES.values()], options)
    for kind, item in zip(BOXES, loaded, strict=True):
        assert isinstance(item, list) and not any(isinstance(one, BadRow) for one in item), (kind, item)
        assert not any("class_labels" in one for one in item), kind
    assert told.count("answered without its target") == len(BOXES), told
    (broken,), told = ask(prepared, [{**rows[0], "image": "missing.png", "objects": BOXES["of text"]}])
    assert isinstance(broken, list) and isinstance(broken[0], BadRow) and "without its target" not in told
