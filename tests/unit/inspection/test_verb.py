"""Proves the verb itself, in this process: exit codes, slips, and that training finds what it has left in the cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune.app.inspect import inspect, open_inspection
from finetune.app.machine import plan_alone
from finetune.errors import EXIT_DONE, EXIT_FAILED, UserError
from finetune.recipe.recipe import recipe_type
from finetune.tasks import CARDS
from tests.prepared import prepare
from tests.unit.inspection.inspected import Data, SilentInspection


def write(found: Data) -> str:
    """Recipe and data on the disk; the path of the recipe."""
    path = found.folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(found.write()), encoding="utf-8")
    return str(path)


def call(recipe: str, **options: Any) -> int:
    given: dict[str, Any] = {"sets": [], "split": "train", "rows": 1, "row": None, "html": None, "strict": False}
    return inspect(recipe=recipe, **{**given, "as_json": False, **options})


def test_exit_codes(data: Callable[..., Data], capsys: pytest.CaptureFixture[str]) -> None:
    found = data("text_classification")
    recipe = write(found)
    assert call(recipe, strict=True) == EXIT_DONE
    found.validation[3] = found.train[2]
    write(found)
    assert call(recipe) == EXIT_DONE
    assert call(recipe, strict=True) == EXIT_FAILED
    assert "leak (1 row)" in capsys.readouterr().out


def test_json_is_all_that_stdout_holds(data: Callable[..., Data], capsys: pytest.CaptureFixture[str]) -> None:
    call(write(data("causal_lm")), as_json=True, split="validation")
    report = json.loads(capsys.readouterr().out)
    assert {row["split"] for row in report["rows"]} == {"validation"}
    assert report["compared"] == report["matching"] == 30


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split": "tset"}, "no split 'tset'"),
        ({"row": 99}, "no row 99"),
        ({"html": Path("/dev/null/page.html")}, "Not a directory"),
        ({"html": Path()}, "is a folder"),
        ({"html": Path(__file__)}, "something else than an earlier result"),
        ({"sets": ["options.max_lenght=3"]}, "max_length"),
    ],
)
def test_slips(data: Callable[..., Data], options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        call(write(data("text_classification")), **options)


def test_the_examples_are_those_that_training_finds_in_the_cache(data: Callable[..., Data]) -> None:
    found = data("causal_lm")
    values = found.write()
    recipe = recipe_type(CARDS[found.task])(**values)
    inspected: Any = open_inspection(plan_alone(recipe), SilentInspection()).train.examples
    trained: Any = prepare(values).datasets["train"]
    assert inspected.folder == trained.folder
    assert "examples" in trained.folder.parts


def test_where_no_row_can_be_used_the_first_error_is_reported(data: Callable[..., Data]) -> None:
    found = data("text_classification")
    found.train[:] = [{"text": "a", "label": "x"}, {"text": "b", "label": "y\ud83d"}]
    with pytest.raises(UserError, match="half of a surrogate pair"):
        call(write(found))
