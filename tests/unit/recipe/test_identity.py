"""What names a training: a stored recipe is parsed by today's schema and compared key by key, machine keys apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, create_model

from finetune.recipe.explain import dump_yaml
from finetune.recipe.identity import list_differences, stored_values, training_differences, training_values
from finetune.recipe.recipe import Recipe, recipe_type
from finetune.recipe.training import TrainingSection
from finetune.recipe.yaml_dialect import dump

from .conftest import CARDS

SMALL: dict[str, Any] = {
    "name": "a",
    "task": "sorting",
    "model": {"source": "m"},
    "data": {"train": [{"source": "d"}, {"source": "e"}]},
}
KIND = recipe_type(CARDS["sorting"])


def recipe(**changes: Any) -> Recipe:
    return KIND.model_validate(SMALL | changes)


def store(folder: Path, kept: Recipe) -> dict[str, Any]:
    file = folder / "recipe.yaml"
    file.write_text(dump_yaml(kept))
    return stored_values(file)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"name": "b"}, []),
        ({"model": {"source": "m", "gradient_checkpointing": True}}, []),
        ({"parallel": {"deepspeed": "none", "micro_batch": 4}}, []),
        ({"tracking": {"wandb": "off"}, "checkpoint": {"keep": 5}}, []),
        ({"data": {**SMALL["data"], "workers": 3}}, []),
        ({"training": {"learning_rate": 3e-5}}, ["training.learning_rate: 5e-05 in the run, 3e-05 now"]),
        ({"seed": 18}, ["seed: 17 in the run, 18 now"]),
        ({"adapter": {"rank": 4}}, ["adapter: (empty) in the run, {kind: lora, rank: 4,"]),
        ({"model": {"source": "m", "config": {"layers": 2}}}, ["model.config.layers: (not given) in the run, 2 now"]),
        ({"data": {"train": ["d", {"source": "e", "limit": 9}]}}, ["data.train.1.limit: (empty) in the run, 9 now"]),
        ({"data": {"train": "d"}}, ["data.train: [{source: d,"]),
        ({"training": {"epochs": 2, "optimizer": "sgd"}}, ["training.epochs: ", "training.optimizer: adamw in the run, sgd"]),
    ],
)  # fmt: skip
def test_differences_are_named_key_by_key(changes: dict[str, Any], expected: list[str], tmp_path: Path) -> None:
    found = training_differences(store(tmp_path, recipe()), recipe(**changes))
    assert len(found) == len(expected), found
    assert all(line.startswith(start) for line, start in zip(found, expected, strict=True)), found


def test_what_is_kept_in_a_manifest_compares_alike() -> None:
    kept = training_values(recipe(parallel={"deepspeed": "none"}))
    assert not {"name", "parallel", "tracking", "checkpoint"} & kept.keys() and "workers" not in kept["data"]
    assert training_differences(kept, recipe()) == []
    assert training_differences(kept, recipe(seed=3)) == ["seed: 17 in the run, 3 now"]


def test_a_key_that_is_new_since_is_no_difference_and_a_machine_key_never(tmp_path: Path) -> None:
    later = create_model(
        "Later",
        __base__=TrainingSection,
        momentum_of_tomorrow=(float, 0.5),
        kernels=(str, Field(default="plain", json_schema_extra={"machine": True})),
    )
    kind = create_model("LaterRecipe", __base__=KIND, training=(later, Field(default_factory=later)))
    stored = store(tmp_path, recipe())
    assert training_differences(stored, kind.model_validate(SMALL)) == []
    assert training_differences(stored, kind.model_validate(SMALL | {"training": {"kernels": "fused"}})) == []
    changed = kind.model_validate(SMALL | {"training": {"momentum_of_tomorrow": 0.7}})
    assert training_differences(stored, changed) == ["training.momentum_of_tomorrow: 0.5 in the run, 0.7 now"]


def test_the_old_spelling_of_a_value_is_no_difference(tmp_path: Path) -> None:
    stored = store(tmp_path, recipe())
    stored["model"]["batch_norm"] = "synchronised"
    now = recipe(model={"source": "m", "batch_norm": "synchronised"})
    assert training_differences(stored, now) == []


def test_secrets_are_compared_masked_and_never_shown(tmp_path: Path) -> None:
    secret = {"source": "m", "config": {"api_key": "abc"}}
    stored = store(tmp_path, recipe(model=secret))  # as earlier versions wrote it
    assert "abc" not in dump(stored)
    assert training_differences(stored, recipe(model=secret)) == []
    told = training_differences(stored, recipe(model={"source": "m", "config": {"api_key": "abc", "x": 1}}))
    assert "abc" not in str(told)


def test_another_task_and_a_recipe_that_today_refuses(tmp_path: Path) -> None:
    stored = store(tmp_path, recipe())
    other = recipe_type(CARDS["writing"]).model_validate(SMALL | {"task": "writing"})
    assert training_differences(stored, other) == ["task: sorting in the run, writing now"]
    stored["training"]["gone"] = 1
    (told,) = training_differences(stored, recipe())
    assert told.startswith("training.gone: unknown key") and told.endswith("(1 in the run)")


def test_a_long_list_is_cut() -> None:
    assert list_differences(["a"]) == "\n    a"
    assert list_differences([str(n) for n in range(12)]).endswith("\n    7\n    and 4 more")
