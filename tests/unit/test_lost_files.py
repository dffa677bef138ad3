"""What is said of a run whose files are damaged or gone: which file, what is left, and what a training does without it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from finetune.app.run_contents import find_checkpoint
from finetune.app.workers.resuming import _lost_rows
from finetune.errors import UserError
from finetune.tracking.run import Run
from finetune.training.checkpoint_reader import newest_checkpoint

ALONE = SimpleNamespace(
    is_main=True,
    rank=0,
    world_size=1,
    broadcast=lambda value: value,
    all_gather=lambda value: [value],
    wait=lambda: None,
)


def break_checkpoints(folder: Path, *steps: int) -> Path:
    for step in steps:
        checkpoint = folder / "checkpoints" / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "manifest.json").write_text("{", encoding="utf-8")
    return folder / "checkpoints"


def test_a_training_whose_checkpoints_are_all_damaged_says_that_it_begins_again(tmp_path: Path) -> None:
    folder, said = break_checkpoints(tmp_path, 5, 10), list[str]()
    assert newest_checkpoint(ALONE, folder, said.append) is None
    assert len(said) == 3 and said[2] == "no checkpoint is whole: the training begins again, at its first step"
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000005.damaged", "step-00000010.damaged"]
    assert newest_checkpoint(ALONE, tmp_path / "new", said.append) is None and len(said) == 3


def test_a_damaged_checkpoint_is_named_with_its_folder_and_the_others(tmp_path: Path) -> None:
    folder = break_checkpoints(tmp_path, 5, 10)
    (folder / "latest").write_text("step-00000010")
    with pytest.raises(UserError) as failed:
        find_checkpoint(Run(tmp_path), "latest")
    assert failed.value.where.startswith(str(folder / "step-00000010"))
    assert failed.value.remedy == "The run also has step-00000005: name one with --checkpoint."


def test_rows_that_a_resumed_run_has_lost_are_told(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    assert _lost_rows(metrics, 1200) == [f"note: {metrics} is gone: curves and the report begin after step 1,200"]
    metrics.write_text('{"step": 1}\nx\n{"step": 2}\n{"st', encoding="utf-8")  # the last line: cut off by a kill
    assert _lost_rows(metrics, 2) == [f"note: 1 of 4 lines is no row (the first is line 2) of {metrics}, and removed"]
    metrics.write_text('{"step": 1}\n', encoding="utf-8")
    assert _lost_rows(metrics, 1) == []


def test_the_error_of_a_damaged_run_says_what_can_still_be_used(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.file.write_text("{", encoding="utf-8")
    for model in (False, True):
        with pytest.raises(UserError) as failed:
            run.read()
        assert (
            failed.value.remedy.startswith("Bring the file back")
            and (str(tmp_path / "model") in failed.value.remedy) is model
        )
        (tmp_path / "model").mkdir(exist_ok=True)
