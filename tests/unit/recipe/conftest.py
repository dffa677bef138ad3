"""Tasks for the recipe room's tests: small cards, so that these tests depend on no task of the house."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest
from pydantic import Field

from finetune.errors import Fault, RecipeFaults
from finetune.recipe.card import LossSpec, MetricSpec, ModelSpec, RowSpec, TaskCard
from finetune.recipe.load import LoadedRecipe, load_recipe
from finetune.recipe.section import Section

GOOD = """\
    name: good
    task: sorting
    model:
      source: someone/some-model
    data:
      train: someone/some-data
      validation_fraction: 0.1
"""


class SortingOptions(Section):
    max_length: int = Field(default=256, ge=1, description="Tokens of an example at most.")
    labels: list[str] = Field(default_factory=list, description="Names of classes.")


class WritingOptions(Section):
    template: str = Field(default="", description="Chat template.")


CARDS = {
    "sorting": TaskCard(
        name="sorting",
        summary="Put texts into classes.",
        rows=RowSpec(
            columns={"text": "the text", "text_pair": "a second text", "label": "its class"},
            required=(("text",), ("label",)),
        ),
        metrics=MetricSpec(
            available=("accuracy", "f1_macro", "recall"), default=("accuracy", "f1_macro"), best="accuracy"
        ),
        loss=LossSpec(unit="example", label_smoothing=True),
        model=ModelSpec(auto_class=""),
        options=SortingOptions,
    ),
    "writing": TaskCard(
        name="writing",
        summary="Go on with a text.",
        rows=RowSpec(
            columns={"text": "plain text", "prompt": "what is given", "completion": "what follows"},
            required=(("text", "prompt"),),
        ),
        metrics=MetricSpec(available=("perplexity",), default=("perplexity",), best="perplexity"),
        loss=LossSpec(unit="token"),
        model=ModelSpec(auto_class="", splits=("tensor", "pipeline")),
        options=WritingOptions,
    ),
}


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., LoadedRecipe]:
    """load(text, *sets, here=False): the recipe of `text`, written to r.yaml in a fresh current folder."""
    monkeypatch.chdir(tmp_path)

    def load(text: str = GOOD, *sets: str, here: bool = False) -> LoadedRecipe:
        (tmp_path / "r.yaml").write_text(dedent(text), encoding="utf-8")
        return load_recipe(Path("r.yaml"), sets, CARDS, here=here)

    return load


@pytest.fixture
def faults(load: Callable[..., LoadedRecipe]) -> Callable[..., dict[str, Fault]]:
    """faults(text, *sets, here=False): the faults by key, of which there must be some."""

    def faults(text: str = GOOD, *sets: str, here: bool = False) -> dict[str, Fault]:
        with pytest.raises(RecipeFaults) as caught:
            load(text, *sets, here=here)
        return {fault.key: fault for fault in caught.value.faults}

    return faults
