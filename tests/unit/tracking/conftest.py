"""A recipe and a run folder of it."""

from pathlib import Path
from typing import Any

import pytest

from finetune.recipe.recipe import Recipe
from finetune.tracking.run import Run


def make_recipe(**changes: Any) -> Recipe:
    values = {
        "name": "demo",
        "task": "text_classification",
        "model": {"source": "org/model"},
        "data": {"train": "org/set"},
        **changes,
    }
    return Recipe.model_validate(values)


@pytest.fixture
def recipe() -> Recipe:
    return make_recipe()


@pytest.fixture
def run(recipe: Recipe, tmp_path: Path) -> Run:
    return Run.create(recipe, tmp_path)
