"""Fixtures for the tests of data/: an empty cache, task cards, and recipes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.recipe.card import LossSpec, MetricSpec, ModelSpec, RowSpec, TaskCard
from finetune.recipe.recipe import Recipe

TEXT = TaskCard(
    name="text",
    summary="",
    rows=RowSpec(columns={"text": "", "text_pair": "", "label": ""}, required=(("text",), ("label",))),
    metrics=MetricSpec(available=(), default=(), best="loss"),
    loss=LossSpec(unit="example"),
    model=ModelSpec(auto_class=""),
)
IMAGE = TaskCard(
    name="image",
    summary="",
    rows=RowSpec(columns={"image": "", "label": ""}, required=(("image",), ("label",))),
    metrics=MetricSpec(available=(), default=(), best="loss"),
    loss=LossSpec(unit="image"),
    model=ModelSpec(auto_class=""),
)
REPLY = TaskCard(
    name="reply",
    summary="",
    rows=RowSpec(columns={"text": "", "prompt": "", "completion": ""}, required=(("text", "completion"),)),
    metrics=MetricSpec(available=(), default=(), best="loss"),
    loss=LossSpec(unit="token"),
    model=ModelSpec(auto_class=""),
)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for each test; its folder."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "finetune"


@pytest.fixture
def text_card() -> TaskCard:
    return TEXT


@pytest.fixture
def image_card() -> TaskCard:
    return IMAGE


@pytest.fixture
def reply_card() -> TaskCard:
    return REPLY


@pytest.fixture
def make_recipe() -> Callable[..., Recipe]:
    """make_recipe(train="a.jsonl", limit=3) -> a recipe whose data section that is."""

    def make(seed: int = 17, **data: Any) -> Recipe:
        return Recipe.model_validate({"name": "x", "task": "x", "seed": seed, "model": {"source": "m"}, "data": data})

    return make
