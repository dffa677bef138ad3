"""W&B holds what the journal holds, secrets apart; and whatever happens to W&B, training goes on.

What was recorded offline is read back with wandb's own `wandb leet inspect`.
"""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from finetune.tracking import wandb_mirror
from finetune.tracking.journal import Journal
from finetune.tracking.listeners import Listeners
from finetune.tracking.run import Run
from finetune.tracking.wandb_lineage import OFFLINE_LACKS
from finetune.tracking.wandb_mirror import WandbMirror, display_name
from tests.unit.tracking.conftest import make_recipe

TOKEN = "hf_" + "a" * 34
FACTS = {"ranks": 2, "note": f"pulled with {TOKEN}", "nested": {"api_key": "0" * 40}}


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    """No API key in the environment or in netrc; wandb's own mode variable is not set."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "absent-netrc"))


def train(run, recipe, *, start: int, stop: int, status: str = "done") -> list[str]:
    """A training of `stop` steps as the loop would tell it; what the mirror said."""
    said: list[str] = []
    listeners = Listeners([Journal(run), WandbMirror(run, recipe, said.append)])
    listeners.started(start_step=start, total_steps=stop, steps_per_epoch=5, facts=FACTS)
    for step in range(start + 1, stop + 1):
        epoch = step / 5
        listeners.step(step=step, epoch=epoch, progress={"loss": 1 / step})
        listeners.row({"step": step, "epoch": epoch, "split": "train", "loss": 1 / step, "time": 1e9 + step})
        if step % 5 == 0:
            row = {"step": step, "epoch": epoch, "split": "validation", "loss": 2 / step, "roc_auc": float("nan")}
            listeners.row({**row, "time": 1e9 + step})
            cells = [["a", 1, 2], ["b", None, "<x>"]]
            listeners.table("confusion_matrix", step=step, columns=["reference", "a", "b"], rows=cells)
    listeners.finished(status=status, summary={"best_value": 0.5, "note": TOKEN})
    return said


def inspect(folder: Path, *flags: str) -> str:
    command = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", *flags, "--json", str(folder)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def history(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in inspect(folder).splitlines()]
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def segments(run: Run) -> list[Path]:
    return sorted((run.path / "wandb").glob("offline-run-*"))


def test_offline_a_run_and_its_resume_hold_rows_config_and_tables(tmp_path, no_key):
    recipe = make_recipe(tracking={"project": "p", "tags": ["t1"], "group": "g"})
    run = Run.create(recipe, tmp_path)
    said = train(run, recipe, start=0, stop=10, status="stopped")
    assert said == [f"W&B offline; to upload it later: wandb sync {segments(run)[0]}"]
    recorded = {"id": run.id, "folder": f"wandb/{segments(run)[0].name}", "url": ""}
    assert run.read()["wandb"] == {**recorded, "not_recorded": OFFLINE_LACKS}

    rows = {row["step"]: row for row in history(segments(run)[0])}
    assert sorted(rows) == list(range(1, 11)) and all(rows[step]["_step"] == step for step in rows)
    assert rows[4] == rows[4] | {"train/loss": 0.25, "epoch": 0.8, "_timestamp": 1e9 + 4}
    assert rows[10] == rows[10] | {"train/loss": 0.1, "validation/loss": 0.2}
    assert "validation/roc_auc" not in rows[10]
    assert any(key.startswith("tables/confusion_matrix") for key in rows[10])
    files = list(segments(run)[0].glob("files/media/table/tables/confusion_matrix_10_*.table.json"))
    assert json.loads(files[0].read_text())["data"] == [["a", 1, 2], ["b", None, "<x>"]]

    text = inspect(segments(run)[0])
    records = [json.loads(line) for line in text.splitlines()]
    begun = next(record["run"] for record in records if record["type"] == "run")
    wanted = {"run_id": run.id, "project": "p", "run_group": "g", "job_type": "train", "tags": ["t1"]}
    assert begun == begun | wanted
    axes = {one["metric"].get("glob_name"): one["metric"].get("step_metric") for one in records if "metric" in one}
    assert axes == axes | {"train/*": "step", "validation/*": "step", "test/*": "step"}
    whole = json.loads(inspect(segments(run)[0], "--summary"))
    assert whole["config"]["training"]["global_batch"] == 32 and whole["config"]["facts"]["ranks"] == 2
    assert whole["summary"]["status"] == "stopped" and whole["summary"]["best_value"] == 0.5
    assert TOKEN not in text and "0" * 40 not in text

    train(run, recipe, start=7, stop=12)  # from the checkpoint of step 7: steps 8 to 10 come again
    assert len(segments(run)) == 2
    rows = history(segments(run)[1])
    assert [row["step"] for row in rows] == list(range(1, 13)), "the newest folder alone is whole"
    assert (
        next(record for record in map(json.loads, inspect(segments(run)[1]).splitlines()) if "run" in record)["run"][
            "run_id"
        ]
        == run.id
    )
    assert any(key.startswith("tables/") for key in rows[4]), "tables of before the resume too"


def test_the_runs_table_sorts_by_the_best_value_and_lineage_is_recorded(tmp_path, no_key):
    recipe = make_recipe(evaluation={"metrics": ["accuracy", "confusion_matrix"], "best": "accuracy"})
    recipe = recipe.model_copy(update={"tracking": recipe.tracking.model_copy(update={"alerts": ["done", "failed"]})})
    run = Run.create(recipe, tmp_path)
    run.update(data={"validation": {"rows": 5, "content": "abc"}})
    run.model.mkdir()
    (run.model / "config.json").write_text("{}")
    for step, loss in ((5, 1.0), (10, 0.2)):
        rows = [
            {"id": 3, "loss": loss, "weight": 1, "text": "good"},
            {"id": 4, "loss": 0.5 / loss, "weight": 1, "text": "bad"},
        ]
        path = run.predictions / f"validation-step-{step:08d}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train(run, recipe, start=0, stop=10)
    records = [json.loads(line) for line in inspect(segments(run)[0]).splitlines()]
    best = {one["metric"]["name"]: one["metric"]["summary"] for one in records if "summary" in one.get("metric", {})}
    assert best == {"validation/loss": {"min": True}, "validation/accuracy": {"max": True}}
    artifacts = {one["artifact"]["type"]: one["artifact"] for one in records if one["type"] == "artifact"}
    assert set(artifacts) == {"dataset", "base-model", "model", "run_table"}
    assert sorted(artifacts["model"]["aliases"]) == ["best", "latest"] and '"content":"abc"' in artifacts["dataset"][
        "metadata"
    ].replace(" ", "")
    assert [one["alert"]["title"] for one in records if one["type"] == "alert"] == ["demo: done"]
    table = json.loads(next(segments(run)[0].glob("files/media/table/tables/examples_*.table.json")).read_text())
    assert [row[:4] for row in table["data"]] == [[4, "got worse", 0.5, 2.5], [3, "learned", 1.0, 0.2]]


def test_a_run_is_called_by_what_usually_differs():
    recipe = make_recipe(training={"learning_rate": 3e-4, "epochs": 2, "global_batch": 16}, seed=7)
    assert display_name(recipe) == "demo lr=0.0003 batch=16 epochs=2 seed=7"


def test_wandb_says_nothing_on_its_own(tmp_path, no_key, capfd):
    recipe = make_recipe()
    train(Run.create(recipe, tmp_path), recipe, start=0, stop=3)
    assert capfd.readouterr() == ("", "")


def test_off_never_starts_anything(run, tmp_path, no_key):
    before = threading.active_count()
    assert train(run, make_recipe(tracking={"wandb": "off"}), start=0, stop=3) == []
    assert not (run.path / "wandb").exists() and threading.active_count() == before


def test_online_without_a_key_records_offline_and_never_asks(tmp_path, no_key):
    recipe = make_recipe(tracking={"wandb": "online"})
    run = Run.create(recipe, tmp_path)
    said = train(run, recipe, start=0, stop=3)
    assert "no API key" in said[0] and "wandb sync" in said[1] and len(said) == 2
    assert [row["step"] for row in history(segments(run)[0])] == [1, 2, 3]


def test_a_key_in_netrc_means_online(monkeypatch, tmp_path, no_key):
    import wandb

    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1:9 login user password {'a' * 40}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    wandb.teardown()  # it reads the address once
    assert not wandb_mirror.has_key(wandb)
    monkeypatch.setenv("NETRC", str(netrc))
    assert wandb_mirror.has_key(wandb)
    wandb.teardown()


def test_an_unreachable_server_never_delays_a_step_and_loses_no_row(monkeypatch, tmp_path, no_key):
    import wandb

    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr(wandb_mirror, "INIT_SECONDS", 2.0)
    wandb.teardown()
    recipe = make_recipe()
    run = Run.create(recipe, tmp_path)
    began = time.monotonic()
    said: list[str] = []
    mirror = WandbMirror(run, recipe, said.append)
    mirror.started(start_step=0, total_steps=3, steps_per_epoch=3, facts={})
    for step in (1, 2, 3):
        mirror.row({"step": step, "epoch": 1, "split": "train", "loss": 1.0})
    assert time.monotonic() - began < 0.5
    mirror.finished(status="done", summary={})
    wandb.teardown()
    assert "cannot be reached" in said[0] and "wandb sync" in said[1] and len(said) == 2
    assert [row["step"] for row in history(segments(run)[0])] == [1, 2, 3]


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_failing_wandb_is_told_once_and_training_goes_on(run, recipe, monkeypatch, no_key, where):
    import wandb

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError(f"no {where} today, key {TOKEN}")

    if where == "init":
        monkeypatch.setattr(wandb, "init", broken)
    else:
        monkeypatch.setattr(f"wandb.sdk.wandb_run.Run.{where}", broken)
    said = [line for line in train(run, recipe, start=0, stop=10) if "offline" not in line]
    assert said == [f"W&B is disabled, training continues (RuntimeError: no {where} today, key ***)"]
    assert run.metrics_file.read_text().count("\n") == 12 and run.status == "done"


def test_a_hanging_wandb_does_not_hold_the_end_of_training(run, recipe, monkeypatch, no_key):
    import wandb

    release = threading.Event()
    monkeypatch.setattr(wandb, "init", lambda **_: release.wait(30))
    monkeypatch.setattr(wandb_mirror, "FINISH_SECONDS", -4.5)  # so that `finished` waits for half a second
    began = time.monotonic()
    said = train(run, recipe, start=0, stop=3)
    release.set()
    assert time.monotonic() - began < 5 and "W&B did not finish" in said[0]


def test_without_wandb_installed_training_goes_on(run, recipe, monkeypatch, no_key):
    monkeypatch.setitem(sys.modules, "wandb", None)
    said = train(run, recipe, start=0, stop=3)
    assert len(said) == 1 and "W&B is disabled" in said[0] and run.status == "done"
