"""Attacks the choice of a run folder: two starts at once, checkpoints that are none, folders that are no run."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer

from finetune.app import runs, supervise
from finetune.app.report import report
from finetune.app.runs import LOCK, choose_run, has_checkpoint, kept_run, leave_folders, resume_command, take_folder
from finetune.cli import app as program
from finetune.data.prepare.locks import NoLocks, release, try_lock
from finetune.errors import UserError
from finetune.recipe.identity import training_values
from finetune.recipe.load import LoadedRecipe, load_recipe
from finetune.recipe.recipe import recipe_type
from finetune.tasks import CARDS
from finetune.tracking.run import Run
from finetune.training.checkpoint_manifest import Manifest
from tests.e2e import tiny


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    recipe = recipe_type(CARDS["text_classification"])(**tiny.recipe(data={"train": str(tmp_path / "train.csv")}))
    yield LoadedRecipe(recipe, {})
    leave_folders()


def checkpoint(run: Run, step: int) -> Path:
    folder = run.checkpoints / f"step-{step:08d}"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    return folder


def test_of_two_starts_at_once_one_has_the_folder(loaded: LoadedRecipe, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    other = try_lock(tmp_path / "run" / LOCK)
    assert other is not None
    with pytest.raises(UserError, match="the run is being trained by process") as refused:
        choose_run(loaded, tmp_path / "run", "auto")
    assert "kill -TERM" in refused.value.remedy
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK], "nothing is written"
    release(other, tmp_path / "run" / LOCK)
    run = choose_run(loaded, tmp_path / "run", "auto")
    assert run is not None and (run.path / LOCK).exists()
    assert try_lock(run.path / LOCK) is None, "it is this process's own"
    leave_folders()
    assert not (run.path / LOCK).exists()


@pytest.mark.parametrize(
    "name",
    ["model/mine.txt", "recipe.yaml", "report.html", "metrics.jsonl", "plan.json", "checkpoints/a/b", "artifacts"],
)
def test_a_folder_whose_files_a_run_would_replace_is_refused(loaded: LoadedRecipe, tmp_path: Path, name: str) -> None:
    file = tmp_path / "own" / name
    file.parent.mkdir(parents=True)
    file.write_text("# mine\n")
    before = sorted((tmp_path / "own").rglob("*"))
    with pytest.raises(UserError, match="a run there would replace what it holds: " + name.split("/")[0]):
        choose_run(loaded, tmp_path / "own", "auto")
    assert sorted((tmp_path / "own").rglob("*")) == before and file.read_text() == "# mine\n"
    with pytest.raises(UserError, match="it is not a folder"):
        choose_run(loaded, file, "auto")


def test_a_folder_of_other_things_or_of_a_killed_start_takes_a_run(loaded: LoadedRecipe, tmp_path: Path) -> None:
    (tmp_path / "own" / "logs").mkdir(parents=True)
    (tmp_path / "own" / "logs" / "slurm.out").touch()
    (tmp_path / "own" / "notes.txt").touch()
    run = choose_run(loaded, tmp_path / "own", "auto")
    assert run is not None
    run.file.unlink()  # as if the start had been killed just before it wrote it
    again = choose_run(loaded, tmp_path / "own", "auto")
    assert again is not None and again.file.exists()


def test_the_command_that_resumes_a_run_finds_it_and_no_other(loaded: LoadedRecipe) -> None:
    """Words of the shell, parsed again by the command line's own parser."""
    tiny.write_data(Path())
    run = Run.create(loaded.recipe, Path("runs with spaces"))
    Run.create(loaded.recipe, Path("runs with spaces"))  # a newer one
    command = resume_command(run, processes=3, restarts=2, data_changed=True)
    name, verb, *rest = shlex.split(command)
    options = typer.main.get_command(program).commands[verb].make_context(verb, rest).params  # type: ignore[attr-defined]
    assert (name, verb) == ("finetune", "train")
    assert (options["processes"], options["restarts"], options["data_changed"]) == (3, 2, True)
    again = load_recipe(Path(options["recipe"]), [], CARDS)
    found = choose_run(again, options["run_dir"], options["resume"])
    assert found is not None and found.path.resolve() == run.path.resolve()
    assert shlex.split(resume_command(run))[-2:] == ["--run-dir", str(run.path)], "no options that were not given"


def test_a_run_that_is_resumed_without_naming_its_folder_is_locked_too(loaded: LoadedRecipe) -> None:
    run = choose_run(loaded, None, "auto")
    assert run is not None
    assert try_lock(run.path / LOCK) is None
    run.update(status="stopped", process=None)
    again = choose_run(loaded, None, "auto")
    assert again is not None and again.path.resolve() == run.path.resolve(), "a process keeps its own"


def test_a_folder_without_locks_is_used_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> int:
        raise NoLocks(37, "No locks available")

    monkeypatch.setattr(runs, "try_lock", refuse)
    take_folder(tmp_path)


def test_what_is_resumed_is_looked_at_first(loaded: LoadedRecipe, tmp_path: Path) -> None:
    recipe = loaded.recipe
    run = choose_run(loaded, tmp_path / "run", "auto")
    assert run is not None
    assert kept_run(recipe, run.path, "auto") is None and not has_checkpoint(run), "nothing was trained yet"
    saved = checkpoint(run, 3)
    assert kept_run(recipe, run.path, "auto") == run.path and kept_run(recipe, run.path, "never") is None
    assert kept_run(recipe, None, str(saved)) is None, "its run has no plan"
    run.plan_file.write_text("{}")
    assert kept_run(recipe, None, str(saved)) == run.path.resolve(), (
        "plan and artifacts of the checkpoint's run are kept"
    )
    for path, told in (
        ("nope", "no such checkpoint"),
        (str(run.path), "its checkpoints are step-00000003"),
        (str(tmp_path), "not a checkpoint"),
        (str(run.checkpoints / "step-00000009"), "no such checkpoint"),
    ):
        with pytest.raises(UserError) as refused:
            kept_run(recipe, run.path, path)
        assert told in str(refused.value) and f"--resume {Path(path).resolve()}" in str(refused.value)


def test_a_checkpoint_of_another_recipe_is_refused_before_any_rank_starts(loaded: LoadedRecipe, tmp_path: Path) -> None:
    """As part of its run, and copied out of it, where its manifest alone names the recipe."""
    run = choose_run(loaded, tmp_path / "run", "auto")
    assert run is not None
    saved = checkpoint(run, 3)
    manifest = Manifest(3, {}, {}, {}, training=training_values(loaded.recipe))
    (saved / "manifest.json").write_text(manifest.to_json())
    copied = shutil.copytree(saved, tmp_path / "elsewhere" / saved.name)
    training = loaded.recipe.training
    longer = loaded.recipe.model_copy(
        update={"training": training.model_copy(update={"learning_rate": 2 * training.learning_rate})}
    )
    for path, told in ((saved, "belongs to another recipe"), (copied, "was trained with another recipe")):
        assert kept_run(loaded.recipe, None, str(path)) is None, "the same recipe resumes"
        with pytest.raises(UserError, match=told) as refused:
            kept_run(longer, None, str(path))
        assert f"training.learning_rate: {training.learning_rate} in the run" in str(refused.value)


def test_verbs_say_in_the_same_words_that_a_folder_is_no_run(loaded: LoadedRecipe, tmp_path: Path) -> None:
    run = choose_run(loaded, None, "auto")
    assert run is not None
    for folder, remedy in ((Path("runs"), f"Did you mean {run.path}?"), (run.logs, "Give the folder of one run")):
        told = []
        for verb in (Run.open, report):
            with pytest.raises(UserError) as refused:
                verb(folder)
            told.append(str(refused.value))
        assert told[0] == told[1] and "not a run folder: it has no run.json" in told[0] and remedy in told[0]


def test_a_restart_is_told_the_step_of_the_newest_checkpoint_whatever_lies_beside_it(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert supervise._last_step(run) == 0
    for name in ("step-00000010", "step-00000020", "step-00000020-keep", "step-00000030.incomplete", "step-last"):
        (run.checkpoints / name).mkdir(parents=True)
    assert supervise._last_step(run) == 20


def test_what_to_do_about_a_run_of_another_recipe_depends_on_what_it_has(loaded: LoadedRecipe) -> None:
    run = Run.create(loaded.recipe, Path("runs"))
    other = LoadedRecipe(loaded.recipe.model_copy(update={"seed": 3}), {})

    def remedy() -> str:
        with pytest.raises(UserError, match="a run of another recipe") as refused:
            choose_run(other, run.path, "auto")
        return str(refused.value.remedy)

    run.update(status="running")
    assert "a process may be training in this one" in remedy()
    run.update(status="failed")
    assert "remove this folder" in remedy() and "weights" not in remedy()
    checkpoint(run, 1)
    assert "set these keys back to resume" in remedy() and "remove" not in remedy()
    run.model.mkdir()
    assert f"--set model.source={run.path}" in remedy()
