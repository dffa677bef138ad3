"""Proves that the workspace of `finetune dashboard` asks W&B for what its mirror logs, and for nothing else.

The specification is what `wandb-workspaces` would send. How W&B draws it needs a server, and is not tested.
"""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from finetune.app import dashboard as verb
from finetune.errors import FinetuneError, UserError
from finetune.tracking import dashboard
from finetune.tracking.dashboard import build_workspace, read_logged, save_workspace, specification
from finetune.tracking.journal import Journal
from finetune.tracking.listeners import Listeners
from finetune.tracking.run import Run
from finetune.tracking.wandb_mirror import WandbMirror
from tests.unit.tracking.conftest import make_recipe

TIMES = {"step_seconds": 1.0, "compute_seconds": 0.6, "communication_seconds": 0.3, "data_seconds": 0.1}
TRAIN = {"loss": 1.0, "learning_rate": 1e-4, "memory_bytes": 2.0**30, "units_per_second": 5.0, **TIMES}


def record(tmp_path, *, device="cpu", name="r", mirror=None, **changes):
    """A run with rows, tables and a picture; mirror: also recorded by W&B, offline."""
    recipe = make_recipe(**changes)
    run = Run.create(recipe, tmp_path, path=tmp_path / name)
    run.update(task="text_classification")
    picture = run.predictions / "pictures" / "examples" / "1.png"
    picture.parent.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(picture)
    listeners = Listeners([Journal(run), *([WandbMirror(run, recipe, mirror.append)] if mirror is not None else [])])
    listeners.started(start_step=0, total_steps=2, steps_per_epoch=2, facts={"device": device})
    for step in (1, 2):
        listeners.row({"step": step, "epoch": step / 2, "split": "train", "time": 1e9 + step, **TRAIN})
    figures = {"loss": 0.9, "f1_macro": 0.5, "accuracy": 0.6}
    listeners.row({"step": 2, "epoch": 1.0, "split": "validation", "time": 1e9 + 3, **figures})
    for table in ("samples", "confusion_matrix", "per_class", "figures_of_mine"):
        listeners.table(table, step=2, columns=["a"], rows=[[1]])
    listeners.table("worst_examples", step=2, columns=["id", "picture"], rows=[[1, str(picture)]])
    listeners.finished(status="done", summary={"best_metric": "accuracy"})
    return run


def sections(workspace):
    """name -> keys that its panels ask for."""
    found = {}
    for section in specification(workspace)["spec"]["section"]["panelBankConfig"]["sections"]:
        keys = found.setdefault(section["name"], [])
        for panel in section["panels"]:
            config = panel["config"]
            keys += config.get("metrics", []) + config.get("mediaKeys", [])
            if "metricRegex" in config:
                keys.append(config["metricRegex"])
            if "panel2Config" in config:
                keys.append(config["panel2Config"]["exp"]["fromOp"]["inputs"]["key"]["val"])
    return found


def built(*runs, whole_group=False):
    return build_workspace(read_logged([run.path for run in runs]), name="n", entity="e", whole_group=whole_group)


def test_sections_hold_what_the_run_has_logged(tmp_path):
    assert sections(built(record(tmp_path))) == {
        "Loss and metrics": [
            "train/loss",
            "validation/loss",
            "validation/accuracy",  # which chooses the best checkpoint, first
            "validation/f1_macro",
            "train/learning_rate",
        ],
        "Where a step's seconds go": [
            "train/compute_seconds",
            "train/communication_seconds",
            "train/data_seconds",
            "train/step_seconds",
            "train/units_per_second",
        ],
        "Memory per rank": ["train/memory_bytes"],
        "Samples before and after": ["tables/samples"],
        "Confusion matrix and classes": ["tables/confusion_matrix", "tables/per_class"],
        "Worst examples": ["tables/worst_examples"],
        "Pictures": ["pictures/worst_examples"],
        "Other tables": ["tables/figures_of_mine"],
    }


def test_the_mirror_logs_every_key_that_a_panel_asks_for(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "absent-netrc"))
    run = record(tmp_path, mirror=[])
    asked = {key for keys in sections(built(run)).values() for key in keys}
    command = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json"]
    [segment] = (run.path / "wandb").glob("offline-run-*")
    text = subprocess.run([*command, str(segment)], check=True, capture_output=True, text=True).stdout
    logged = set()
    for line in text.splitlines():
        logged |= json.loads(line).get("history", {}).get("item", {}).keys()
    found = {key for key in asked if key in logged or any(one.startswith(f"{key}.") for one in logged)}
    assert found == asked and len(asked) == 17


def test_a_gpu_run_shows_the_memory_of_each_gpu(tmp_path):
    keys = sections(built(record(tmp_path, device="cuda")))["Memory per rank"]
    assert keys == ["train/memory_bytes", dashboard.GPU_MEMORY]


def test_a_run_is_found_by_its_id_and_a_group_by_its_name_with_the_best_value_in_the_table(tmp_path):
    runs = [record(tmp_path, name=name, tracking={"group": "g"}) for name in ("a", "b")]

    def filters(workspace):
        [runset] = specification(workspace)["spec"]["section"]["runSets"]
        [one] = runset["filters"]["filters"]
        return one["key"]["name"], one["op"].upper(), one["value"], runset["runFeed"]["columnOrder"][1]

    ids = [run.id for run in runs]
    assert filters(built(*runs)) == ("name", "IN", ids, "summary:validation/accuracy.max")
    assert filters(built(*runs, whole_group=True))[:3] == ("group", "=", "g")
    assert "Runs compared" in sections(built(*runs)) and "Runs compared" not in sections(built(runs[0]))
    loss = record(tmp_path, name="c", evaluation={"best": "loss"})
    assert filters(built(loss))[3] == "summary:validation/loss.min"


def test_runs_of_two_projects_are_refused(tmp_path):
    runs = [record(tmp_path, name=name, tracking={"project": name}) for name in ("one", "two")]
    with pytest.raises(UserError, match="2 W&B projects: one, two"):
        built(*runs)


def test_the_specification_is_written_without_a_network(tmp_path, capsys, monkeypatch):
    record(tmp_path, name="group/1")
    monkeypatch.setattr(verb, "_entity", lambda configured: pytest.fail("asks W&B"))
    verb.dashboard(tmp_path / "group", tmp_path / "spec.json", "")
    tree = json.loads((tmp_path / "spec.json").read_text())
    assert tree["displayName"] == "demo: all runs" and tree["project"] == "finetune"
    assert "not sent to W&B" in capsys.readouterr().out
    verb.dashboard(tmp_path / "group" / "1", tmp_path / "spec.json", "mine")
    assert json.loads((tmp_path / "spec.json").read_text())["displayName"] == "mine"


def test_what_cannot_be_laid_out_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no run folder, and no runs below it"):
        verb.dashboard(tmp_path, tmp_path / "spec.json", "")
    Run.create(make_recipe(), tmp_path, path=tmp_path / "empty")
    with pytest.raises(UserError, match="nothing has been logged yet"):
        verb.dashboard(tmp_path / "empty", tmp_path / "spec.json", "")
    run = record(tmp_path, name="full")
    monkeypatch.setattr(verb, "has_key", lambda wandb: False)
    with pytest.raises(UserError, match="no API key") as error:
        verb.dashboard(run.path, None, "")
    assert "--spec FILE" in error.value.remedy
    monkeypatch.setattr(dashboard.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as error:
        verb.dashboard(run.path, None, "")
    assert "pip install 'finetune[dashboards]'" in error.value.remedy


def test_a_server_that_refuses_is_one_line_without_secrets(tmp_path):
    def refuse():
        raise RuntimeError("403 for https://user:hunter2hunter2@host\nmore")

    with pytest.raises(FinetuneError, match="did not save the workspace: 403") as error:
        save_workspace(SimpleNamespace(save=refuse, entity="e", project="p", url=""))
    assert "hunter2" not in str(error.value) and "more" not in str(error.value)


def test_what_is_saved_is_reported_with_its_address_and_what_the_server_lacks(tmp_path, capsys, monkeypatch):
    run = record(tmp_path)
    saved = []
    monkeypatch.setattr(verb, "_entity", lambda configured: "team")
    monkeypatch.setattr(verb, "save_workspace", lambda workspace: saved.append(workspace) or "https://host/team/p?nw=1")
    verb.dashboard(run.path, None, "")
    assert saved[0].entity == "team"
    out = capsys.readouterr().out
    assert "https://host/team/p?nw=1" in out and f"{run.path} is not on the server" in out
