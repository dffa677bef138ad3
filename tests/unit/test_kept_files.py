"""Files of a run folder are edited behind the run's back: what its verbs rely on is refused, what its owner may say is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.app.edited_recipe import edited_keys
from finetune.app.export import export
from finetune.app.kept_files import UNKNOWN, read_plan
from finetune.app.model_sources import find_model
from finetune.errors import UserError
from finetune.recipe.load import load_recipe
from finetune.tasks import CARDS
from finetune.tracking.run import Run
from finetune.training.checkpoint_manifest import Manifest
from tests.contract.examples import EXAMPLES
from tests.prepared import prepare
from tests.stored_runs import store_run


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    (example,) = (example for example in EXAMPLES if example.task == "text_classification")
    prepared = prepare(example.recipe(folder))
    return store_run(prepared, prepared.build(), folder / "runs")


@pytest.fixture
def run(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(kept, tmp_path / "run"))


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tree = json.loads(file.read_text())
    change(tree)
    file.write_text(json.dumps(tree))


def asked(run: Path) -> list[str]:
    """What asking the run's model tells."""
    notes: list[str] = []
    find_model(run, notify=notes.append)
    return notes


def refused(run: Path, says: str) -> None:
    for verb in (lambda: asked(run), lambda: export(run, output=run / "out", checkpoint="latest", merge=False)):
        with pytest.raises(UserError, match=says):
            verb()
        assert not (run / "out").exists()


def test_a_run_as_it_was_is_used_without_a_word(run: Path) -> None:
    assert asked(run) == []
    edit(run / "plan.json", lambda tree: tree["machine"].update(ranks=64))  # made anew at each start
    edit(run / "artifacts" / "model" / "config.json", lambda tree: tree.update(transformers_version="9.9"))
    assert asked(run) == []


@pytest.mark.parametrize("changed", [{"precision": "bf16"}, {"capacity": 7}, {"metrics": []}, {"new": 1}])
def test_an_edited_plan_is_refused(run: Path, changed: dict[str, Any]) -> None:
    edit(run / "plan.json", lambda tree: tree["training"].update(changed))
    refused(run, "the plan of the run is not the one that it was trained with")


def test_a_plan_that_was_removed_is_refused_unless_run_json_does_not_know_it(run: Path) -> None:
    (run / "plan.json").unlink()
    refused(run, "there is no plan.json")
    edit(run / "run.json", lambda tree: tree.pop("plan"))
    assert read_plan(Run(run)) is None


def test_an_edited_configuration_of_the_model_is_refused(run: Path) -> None:
    config = run / "artifacts" / "model" / "config.json"
    before = config.read_bytes()
    edit(config, lambda tree: tree.update(hidden_act="relu"))
    refused(run, "the model's configuration is not the one")
    config.write_bytes(before)
    assert asked(run) == []
    shutil.rmtree(config.parent)
    refused(run, "the model's configuration is not the one")


def test_a_run_of_an_earlier_version_is_used_and_says_that_it_has_no_digest(run: Path) -> None:
    edit(run / "run.json", lambda tree: [tree.pop(name) for name in ("plan", "model_config", "artifacts")])
    edit(run / "plan.json", lambda tree: tree["training"].update(capacity=7))
    assert asked(run) == [UNKNOWN]


def test_an_edited_recipe_is_reported_key_by_key(run: Path) -> None:
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text.replace("seed: ", "seed: 1", 1))
    (note,) = asked(run)
    assert "recipe.yaml was edited after the training" in note and "seed" in note and "in step-00000001" in note
    recipe = load_recipe(run / "recipe.yaml", [], CARDS, here=False).recipe
    assert len(edited_keys(Manifest.read(run / "checkpoints" / "step-00000001" / "manifest.json"), recipe)) == 1
