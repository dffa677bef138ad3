"""W&B holds what the journal holds, secrets apart; and whatever happens to W&B, training goes on.

What was recorded offline is read back with wandb's own `wandb leet inspect`.
"""

import json
import logging
import socket
import subprocess
import sys
import threading
import time
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune.tracking import wandb_run, wandb_tables
from finetune.tracking.journal import Journal, read_rows
from finetune.tracking.listeners import Listeners
from finetune.tracking.run import Run
from finetune.tracking.run_names import display_name, unique_name
from finetune.tracking.wandb_ending import send_alert
from finetune.tracking.wandb_lineage import OFFLINE_LACKS, record_model
from finetune.tracking.wandb_mirror import WandbMirror
from tests.faults import small_disk
from tests.unit.tracking.conftest import make_recipe

INCREMENTAL = "wandb-run-incremental-table"
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
    lacks = "without links to the data and the base model, which only a server records"
    assert said == [f"W&B offline, {lacks}; to upload it later: wandb sync {segments(run)[0]}"]
    named = {"id": run.id, "name": display_name(recipe)}
    recorded = {**named, "folder": f"wandb/{segments(run)[0].name}", "url": ""}
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
    assert best == {"validation/loss": {"min": True}, "validation/accuracy": {"max": True}}  # confusion_matrix: no best
    artifacts = {one["artifact"]["type"]: one["artifact"] for one in records if one["type"] == "artifact"}
    assert set(artifacts) == {"dataset", "base-model", "run", "model", "run_table", INCREMENTAL}
    assert sorted(artifacts["model"]["aliases"]) == sorted(["best", "latest", run.id])
    assert '"content":"abc"' in artifacts["dataset"]["metadata"].replace(" ", "")
    assert [one["alert"]["title"] for one in records if one["type"] == "alert"] == ["demo: done"]
    table = json.loads(next(segments(run)[0].glob("files/media/table/tables/examples_*.table.json")).read_text())
    assert [row[:4] for row in table["data"]] == [[4, "got worse", 0.5, 2.5], [3, "learned", 1.0, 0.2]]


def test_a_run_is_called_by_what_usually_differs():
    recipe = make_recipe(training={"learning_rate": 3e-4, "epochs": 2, "global_batch": 16}, seed=7)
    assert display_name(recipe) == "demo lr=0.0003 batch=16 epochs=2 seed=7"


def test_no_two_runs_of_a_folder_have_the_same_name(tmp_path):
    plain = make_recipe(training={"learning_rate": 3e-4, "epochs": 2})
    decays = make_recipe(training={"learning_rate": 3e-4, "epochs": 2, "weight_decay": 0.25})
    other_data = make_recipe(training={"learning_rate": 3e-4, "epochs": 2}, data={"train": "org/set", "limit": 77})
    tracked = make_recipe(training={"learning_rate": 3e-4, "epochs": 2}, tracking={"tags": ["again"]})
    names = []
    for number, recipe in enumerate((plain, decays, other_data, plain, tracked, decays)):
        run = Run.create(recipe, tmp_path, path=tmp_path / "demo" / str(number))
        names.append(unique_name(run, recipe))
        run.update(wandb={"name": names[-1]})
        assert unique_name(run, recipe) == names[-1], "a resumed run keeps its name"
    usual = display_name(plain)
    assert (
        names[:2] == [usual, f"{usual} weight_decay=0.25"]
        and names[2].startswith(f"{usual} ")
        and "limit=77" in names[2]
    )
    assert names[3:] == [f"{usual} #2", f"{usual} #3", f"{usual} weight_decay=0.25 #2"]


@pytest.mark.parametrize(
    ("status", "summary", "title"),
    [
        ("done", {}, "demo: done"),
        ("stopped", {}, "demo: stopped"),
        ("failed", {"failure": "the loss is nan", "failure_kind": "diverged"}, "demo: diverged"),
        ("failed", {"failure": "cannot write", "failure_kind": "disk_full"}, "demo: disk full"),
        ("failed", {"failure": "KeyError"}, "demo: failed"),
    ],
)
def test_each_kind_of_alert_is_on_or_off(tmp_path, status, summary, title):
    kind = title.removeprefix("demo: ").replace(" ", "_")
    kinds = ["done", "failed", "diverged", "disk_full", "stopped"]
    for asked in ([kind], [one for one in kinds if one != kind]):
        recipe, sent = make_recipe(tracking={"alerts": asked}), []
        wandb = SimpleNamespace(alert=lambda sent=sent, **alert: sent.append(alert))
        send_alert(wandb, Run.create(recipe, tmp_path), recipe, status, summary)
        assert [alert["title"] for alert in sent] == ([title] if asked == [kind] else [])
        assert all(summary.get("failure", "") in alert["text"] for alert in sent)
    assert make_recipe().tracking.alerts == ["failed", "diverged", "disk_full", "stopped"]


def test_data_that_changed_under_a_run_is_marked(tmp_path, no_key):
    recipe = make_recipe()
    run = Run.create(recipe, tmp_path)
    run.update(data_changes=[{"step": 7, "changes": ["train: a.csv had 5 rows, and now has 6"]}])
    train(run, recipe, start=0, stop=1)
    [folder] = segments(run)
    whole = json.loads(inspect(folder, "--summary"))
    assert whole["config"]["data_changes"][0]["step"] == 7 and whole["summary"]["data_versions"] == 2
    begun = next(record["run"] for record in map(json.loads, inspect(folder).splitlines()) if record["type"] == "run")
    assert begun["tags"] == ["data-changed"] and "from step 7: train: a.csv had 5 rows" in begun["notes"]


def test_what_is_cut_of_a_table_is_said_once(tmp_path, no_key, monkeypatch):
    monkeypatch.setattr(wandb_tables, "MAX_ROWS", 3)
    monkeypatch.setattr(wandb_tables, "MAX_COLUMNS", 2)
    recipe = make_recipe()
    run = Run.create(recipe, tmp_path)
    said: list[str] = []
    mirror = WandbMirror(run, recipe, said.append)
    mirror.started(start_step=0, total_steps=2, steps_per_epoch=2, facts={})
    for step in (1, 2):
        mirror.table("wide", step=step, columns=["a", "b", "c"], rows=[[1, "x" * 3000, 3]] * 5)
    mirror.finished(status="done", summary={})
    assert [line for line in said if "tables/wide" in line] == [
        f"W&B: tables/wide has 5 rows and 3 columns, of which W&B gets the first 3 and 2; {run.tables} has all of it"
    ]
    table = json.loads(next(segments(run)[0].glob("files/media/table/tables/wide_1_*.table.json")).read_text())
    assert table["columns"] == ["a", "b"] and len(table["data"]) == 3
    assert table["data"][0][1] == "x" * 2000 + "… (1,000 more characters)"


def test_references_by_default_and_files_on_request(tmp_path, no_key):
    (tmp_path / "rows.csv").write_text("text,label\n")
    for upload in ([], ["model", "data"]):
        recipe = make_recipe(tracking={"upload": upload}, data={"train": str(tmp_path / "rows.csv")})
        run = Run.create(recipe, tmp_path)
        run.update(data={"train": {"rows": 5, "content": "abc"}})
        run.model.mkdir()
        (run.model / "config.json").write_text("{}")
        train(run, recipe, start=0, stop=1)
        records = [json.loads(line) for line in inspect(segments(run)[0]).splitlines()]
        entries = {
            one["artifact"]["type"]: one["artifact"]["manifest"].get("contents", [])
            for one in records
            if "artifact" in one
        }
        for kind, path in (("model", "config.json"), ("dataset", "rows.csv")):
            [entry] = entries[kind]
            assert entry["path"] == path and bool(entry.get("ref")) == (not upload) == (not entry.get("local_path"))
        assert {entry["path"] for entry in entries["run"]} == {"recipe.yaml", "metrics.jsonl"}


def test_best_names_the_best_model_of_a_recipe(tmp_path, no_key):
    values = {"a": 0.5, "b": 0.7, "c": 0.6}
    for name, value in values.items():
        recipe = make_recipe(evaluation={"best": "accuracy"})
        run = Run.create(recipe, tmp_path, path=tmp_path / "demo" / name)
        run.model.mkdir()
        (run.model / "config.json").write_text("{}")
        taken: list[list[str]] = []
        record_model(
            SimpleNamespace(log_artifact=lambda artifact, aliases, taken=taken: taken.append(aliases)),
            run,
            recipe,
            summary := {"best_metric": "accuracy", "best_value": value},
        )
        run.update(status="done", summary=summary)
        assert ("best" in taken[0]) == (name != "c") and {"latest", run.id} <= set(taken[0])


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
    assert not wandb_run.has_key(wandb)
    monkeypatch.setenv("NETRC", str(netrc))
    assert wandb_run.has_key(wandb)
    wandb.teardown()


def test_an_unreachable_server_never_delays_a_step_and_loses_no_row(monkeypatch, tmp_path, no_key):
    import wandb

    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr(wandb_run, "INIT_SECONDS", 4.0)
    wandb.teardown()
    recipe = make_recipe()
    run = Run.create(recipe, tmp_path)
    began = time.monotonic()
    said: list[str] = []
    mirror = WandbMirror(run, recipe, said.append)
    mirror.started(start_step=0, total_steps=3, steps_per_epoch=3, facts={})
    for step in (1, 2, 3):
        mirror.row({"step": step, "epoch": 1, "split": "train", "loss": 1.0})
    assert time.monotonic() - began < 2
    mirror.finished(status="done", summary={})
    wandb.teardown()
    assert "cannot be used online" in said[0] and "wandb sync" in said[1] and len(said) == 2
    assert [row["step"] for row in history(segments(run)[0])] == [1, 2, 3]


class _Refusing(BaseHTTPRequestHandler):
    """A W&B server that knows no key."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b'{"errors": [{"message": "user is not logged in"}]}'
        self.send_response(401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST  # noqa: N815 - the name that the server looks for

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.mark.parametrize(("import_seconds", "left"), [(0.0, 8.0), (3.0, 5.0), (60.0, 4.0)])
def test_a_slow_import_takes_from_the_time_that_a_server_has(monkeypatch, tmp_path, import_seconds, left):
    import wandb

    now, asked = [100.0], []

    def slow(*_: Any, **__: Any) -> Any:
        now[0] += import_seconds
        return types.SimpleNamespace(settings=None)

    monkeypatch.setattr(wandb_run.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(wandb, "setup", slow)
    monkeypatch.setattr(wandb, "init", lambda settings, **_: asked.append(settings.init_timeout))
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_MODE", "online")
    wandb_run.open_run(tmp_path, "auto", print)
    assert asked == [left]


@pytest.mark.parametrize("fault", ["wrong key", "silent"])
def test_a_server_that_refuses_the_key_or_never_answers_loses_no_row(monkeypatch, tmp_path, no_key, fault):
    import wandb

    server: Any = None
    if fault == "wrong key":
        server = ThreadingHTTPServer(("127.0.0.1", 0), _Refusing)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_port
    else:
        listening = socket.create_server(("127.0.0.1", 0))  # connections wait for ever
        port = listening.getsockname()[1]
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    assert wandb_run.INIT_SECONDS <= 8, "with a second for opening it offline, rows are recorded within 10"
    monkeypatch.setattr(wandb_run, "INIT_SECONDS", 1.0)
    wandb.teardown()
    recipe = make_recipe()
    run = Run.create(recipe, tmp_path)
    said = train(run, recipe, start=0, stop=3)
    wandb.teardown()
    if server is not None:
        server.shutdown()
    assert "cannot be used online" in said[0] and "a" * 40 not in said[0] and "\n" not in said[0]
    assert "wandb sync" in said[1] and len(said) == 2
    assert [row["step"] for row in history(segments(run)[0])] == [1, 2, 3]


def test_a_full_disk_is_said_and_the_next_start_writes_all_rows(tmp_path, no_key, monkeypatch):
    """wandb itself says nothing: it ends as if all had been written."""
    import wandb

    monkeypatch.setattr(logging, "raiseExceptions", False)  # wandb's own log is on the full disk, too
    recipe = make_recipe()
    run = Run.create(recipe, tmp_path)
    said: list[str] = []
    with small_disk(run.path / "wandb", 256 << 10):
        listeners = Listeners([Journal(run), WandbMirror(run, recipe, said.append)])
        listeners.started(start_step=0, total_steps=3000, steps_per_epoch=3000, facts={})
        for step in range(1, 3001):
            listeners.row({"step": step, "epoch": 1.0, "split": "train", "loss": 1 / step, "time": 1e9 + step})
        listeners.finished(status="stopped", summary={})
        wandb.teardown()
    assert len(said) == 2 and ("the disk is full" in said[1] or "No space left" in said[1])
    assert len(list(read_rows(run.metrics_file))) == 3000
    train(run, recipe, start=3000, stop=3001)
    assert [row["step"] for row in history(segments(run)[0])] == list(range(1, 3002))


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
    monkeypatch.setattr(wandb_run, "FINISH_SECONDS", -4.5)  # so that `finished` waits for half a second
    began = time.monotonic()
    said = train(run, recipe, start=0, stop=3)
    release.set()
    assert time.monotonic() - began < 5 and "W&B did not finish" in said[0]


def test_without_wandb_installed_training_goes_on(run, recipe, monkeypatch, no_key):
    monkeypatch.setitem(sys.modules, "wandb", None)
    said = train(run, recipe, start=0, stop=3)
    assert len(said) == 1 and "W&B is disabled" in said[0] and run.status == "done"


def test_a_row_cannot_have_a_file_outside_of_the_run_uploaded(run, tmp_path):
    pictures = run.predictions / "pictures" / "before"
    pictures.mkdir(parents=True)
    for path in (pictures / "1.png", tmp_path / "private.png", tmp_path / "pictures" / "2.png"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    (pictures / "link.png").symlink_to(tmp_path / "private.png")
    named = [
        "/moved/predictions/pictures/before/1.png",
        str(tmp_path / "private.png"),
        str(tmp_path / "pictures" / "2.png"),
    ]
    named += [str(pictures / "link.png"), str(pictures / ".." / ".." / ".." / "private.png"), "pictures", None, 7, "\0"]
    found = wandb_tables.find_pictures(run, ["id", "picture"], [[at, name] for at, name in enumerate(named)])
    assert [(path, cells["id"]) for path, cells in found] == [(pictures / "1.png", 0)]
    assert wandb_tables.find_pictures(run, ["id", "image"], [[0, str(tmp_path / "private.png")]]) == []
