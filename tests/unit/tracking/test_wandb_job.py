"""Evaluations and predictions are W&B runs of their own, linked to the model of the training; offline it is said that they
are not.
"""

import json
from types import SimpleNamespace

import pytest

from finetune.tracking import wandb_job, wandb_run
from finetune.tracking.run import Run
from finetune.tracking.wandb_job import log_job
from tests.unit.tracking.conftest import make_recipe
from tests.unit.tracking.test_wandb_mirror import inspect, no_key, segments  # noqa: F401 - a fixture

FIGURES = {"rows": 5, "idle_share": 0.1, "busiest_rank": 1, "padding_share": 0.2, "errors/failed": 1}


@pytest.fixture
def trained(tmp_path):
    recipe = make_recipe(tracking={"project": "p", "group": "g"})
    return Run.create(recipe, tmp_path)


def test_offline_a_prediction_says_what_is_not_recorded(trained, tmp_path, no_key):  # noqa: F811
    said: list[str] = []
    (tmp_path / "parts").mkdir()
    config = {"output": "out.jsonl", "data": ["in.jsonl"]}
    log_job("predict", tmp_path / "parts", "offline", config, FIGURES, said.append, model=trained.path)
    [segment] = (tmp_path / "parts" / "wandb").glob("offline-run-*")
    records = [json.loads(line) for line in inspect(segment).splitlines()]
    begun = next(one["run"] for one in records if one["type"] == "run")
    wanted = {"project": "p", "run_group": "g", "job_type": "predict"}
    assert begun == begun | wanted and begun["display_name"] == f"predict demo {trained.id} in.jsonl out.jsonl"
    [row] = [one["history"]["item"] for one in records if one["type"] == "history"]
    assert row == row | FIGURES
    config = json.loads(inspect(segment, "--summary"))["config"]
    model = f"demo-model:{trained.id}"
    assert config["training_run"] == trained.id and model in config["not_recorded"]
    assert said[0] == f"W&B does not record the link to the model {model}: only a W&B server can"
    assert "wandb sync" in said[1] and len(said) == 2


def test_an_evaluation_has_its_tables_beside_the_training(trained, no_key):  # noqa: F811
    tables = {"per_class": (["class", "f1"], [["a", 0.5]])}
    log_job(
        "evaluate",
        trained.path,
        "offline",
        {},
        {"test/loss": 1.0},
        lambda text: None,
        model=trained.path,
        tables=tables,
    )
    text = inspect(segments(trained)[0])
    assert '"tables/per_class' in text and '"job_type":"evaluate"' in text.replace(" ", "")
    assert "wandb" not in trained.read() or not trained.read()["wandb"], "the run's own W&B run is not touched"


@pytest.mark.parametrize("there", [True, False])
def test_online_the_model_is_used_and_a_missing_one_is_said(trained, tmp_path, monkeypatch, there):
    used, config, said = [], {}, []

    def use(name):
        if not there:
            raise ValueError(f"artifact {name} not found\nmore")
        used.append(name)

    run = SimpleNamespace(offline=False, url="https://host/r", dir=str(tmp_path), config=config, use_artifact=use)
    run.log, run.finish = lambda values: None, lambda: None
    monkeypatch.setattr(wandb_job, "open_run", lambda *_, **__: run)
    log_job("predict", tmp_path, "online", {}, {}, said.append, model=trained.path)
    name = f"demo-model:{trained.id}"
    assert used == ([name] if there else []) and ("not_recorded" in config) == (not there)
    assert said == (
        [] if there else [f"W&B does not record the link to the model {name}: artifact {name} not found"]
    ) + ["W&B: https://host/r"]


def test_whatever_wandb_does_the_command_goes_on(tmp_path, monkeypatch):
    said: list[str] = []

    def broken(*_, **__):
        raise RuntimeError("no\nmore")

    monkeypatch.setattr(wandb_job, "open_run", broken)
    log_job("predict", tmp_path, "online", {}, {}, said.append, model=tmp_path)
    assert said == ["W&B is disabled (RuntimeError: no)"]
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_run.is_off("online")
    log_job("predict", tmp_path, "online", {}, {}, said.append, model=tmp_path)
    assert len(said) == 1
