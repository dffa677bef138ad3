"""The run folder: its contract, its status, and which run is resumed."""

import json
import os
import subprocess
import sys

import psutil
import pytest

from finetune.errors import FinetuneError, UserError
from finetune.recipe.yaml import read_document
from finetune.tracking import atomic_files as publishing
from finetune.tracking.journal import Journal
from finetune.tracking.run import Run, shown
from tests.unit.tracking.conftest import make_recipe


def begin(run):
    run.begin_session(start_step=0, facts={"ranks": 2, "versions": {"torch": "9.9"}})


def test_a_new_run_has_what_people_and_scripts_look_for(run, recipe):
    assert run.path.parent.name == "demo" and run.name == "demo"
    assert {path.name for path in run.path.iterdir()} == {
        "recipe.yaml", "run.json", "checkpoints", "predictions", "logs", "tables",
    }  # fmt: skip
    assert read_document(run.recipe_file).values == shown(recipe)
    found = json.loads(run.file.read_text())
    assert found["status"] == "running" and found["task"] == "text_classification"
    assert found["machine"]["cores"] >= 1 and found["versions"]["python"].startswith("3.")


def test_a_folder_of_ones_own_keeps_the_unique_id(recipe, tmp_path):
    first, second = (Run.create(recipe, tmp_path, path=tmp_path / at / "out") for at in "ab")
    assert first.path == tmp_path / "a" / "out" and first.name == "demo"
    assert first.id != second.id and "out" not in (first.id, second.id)


def test_ids_sort_by_time_and_do_not_collide(recipe, tmp_path):
    ids = [Run.create(recipe, tmp_path).id for _ in range(20)]
    assert len(set(ids)) == 20
    assert [name[:15] for name in ids] == sorted(name[:15] for name in ids)


def test_sessions_are_noted_and_secrets_are_not(run):
    begin(run)
    run.end_session(status="stopped", summary={"best": float("nan"), "api_key": "k"})
    run.begin_session(start_step=7, facts={"hf_token": "hf_abcdefghijklmnopqrstuvwxyz"})
    found = run.read()
    assert [(one["start_step"], one["status"]) for one in found["sessions"]] == [(0, "stopped"), (7, "running")]
    assert found["summary"] == {"best": None, "api_key": "***"} and found["facts"] == {"hf_token": "***"}
    assert found["status"] == "running"


@pytest.mark.parametrize("status", ["stopped", "failed", "running"])
def test_an_unfinished_run_of_the_same_recipe_is_resumed(recipe, tmp_path, status):
    older, newer = Run.create(recipe, tmp_path), Run.create(recipe, tmp_path)
    for run in (older, newer):
        begin(run)
        run.update(status=status)
    changed_machine = make_recipe(parallel={"deepspeed": "none"}, tracking={"wandb": "off"})
    assert Run.newest_unfinished(changed_machine, tmp_path).id == max(older.id, newer.id)


def test_a_done_run_and_another_recipe_are_not_resumed(recipe, tmp_path):
    run = Run.create(recipe, tmp_path)
    assert Run.newest_unfinished(make_recipe(seed=18), tmp_path) is None
    run.end_session(status="done", summary={})
    assert Run.newest_unfinished(recipe, tmp_path) is None
    assert Run.newest_unfinished(recipe, tmp_path / "nowhere") is None


def test_a_run_that_another_living_process_trains_is_left_alone(run, recipe, tmp_path):
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        process = {**run.read()["process"], "pid": other.pid, "started": psutil.Process(other.pid).create_time()}
        run.update(process=process)
        assert run.trainer == other.pid and Run.newest_unfinished(recipe, tmp_path) is None
    finally:
        other.kill()
        other.communicate()
    assert run.trainer is None and Run.newest_unfinished(recipe, tmp_path).id == run.id


def test_damaged_runs_are_passed_over_and_told_when_opened(run, recipe, tmp_path):
    run.file.write_text("{")
    assert Run.newest_unfinished(recipe, tmp_path) is None
    with pytest.raises(UserError, match="cannot read the run"):
        Run.open(run.path)
    with pytest.raises(UserError, match="not a run folder"):
        Run.open(tmp_path)


def test_a_write_that_fails_leaves_the_former_file(run, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(publishing.os, "fsync", full)
    with pytest.raises(FinetuneError, match="No space left") as error:
        run.update(status="done")
    assert error.value.where == str(run.file)
    assert run.status == "running"
    assert not [path for path in run.path.iterdir() if "incomplete" in path.name]


def test_the_lock_lets_threads_update_without_losing_fields(run):
    from threading import Thread

    threads = [Thread(target=run.update, kwargs={f"field{index}": index}) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {run.read()[f"field{index}"] for index in range(8)} == set(range(8))


def test_the_journal_moves_the_status(run):
    journal = Journal(run)
    journal.started(start_step=0, total_steps=3, steps_per_epoch=3, facts={"ranks": 2})
    assert run.status == "running" and run.read()["process"]["pid"] == os.getpid()
    assert run.read()["facts"] == {"ranks": 2, "total_steps": 3, "steps_per_epoch": 3}
    journal.finished(status="done", summary={"seconds": 2})
    assert run.status == "done" and run.read()["sessions"][0]["ended"] > 0
