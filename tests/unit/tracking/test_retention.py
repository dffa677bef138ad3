"""What stays of a finished run's checkpoints is what the recipe says; what is removed is reported and remembered."""

import pytest

from finetune.app.export import find_checkpoint
from finetune.errors import UserError
from finetune.recipe.identity import training_values
from finetune.tracking.retention import apply_retention, removal_remedy, stored_checkpoints
from tests.unit.tracking.conftest import make_recipe


@pytest.fixture
def filled(run):
    """Three checkpoints, the middle one the best, and one that a resume from an earlier step put aside."""
    for step in (10, 20, 30):
        folder = run.checkpoints / f"step-{step:08d}"
        folder.mkdir()
        (folder / "manifest.json").write_bytes(b"x" * 1024)
        (folder / "state-00000-of-00001.safetensors").write_bytes(b"x" * 1024)
    (run.checkpoints / "step-00000040.abandoned").mkdir()
    (run.checkpoints / "latest").write_text("step-00000030")
    (run.checkpoints / "best").write_text("step-00000020")
    return run


def names(run):
    return [one.path.name for one in stored_checkpoints(run)]


def test_all_stay_by_default_and_the_user_hears_what_they_take(filled):
    keep = make_recipe().checkpoint.keep_after_training
    line = apply_retention(filled, keep)
    assert line == (
        f"4 checkpoints (6.0 KiB) in {filled.checkpoints}: not needed by model/ "
        "(checkpoint.keep_after_training: best or none removes them)"
    )
    assert len(names(filled)) == 4 and removal_remedy(filled) == ""


def test_a_copy_that_a_user_made_stays(filled):
    copy = filled.checkpoints / "step-00000020-keep"
    copy.mkdir()
    apply_retention(filled, "none")
    assert names(filled) == [] and [path.name for path in filled.checkpoints.glob("step-*")] == [copy.name]


def test_the_best_alone(filled):
    line = apply_retention(filled, "best")
    assert line == "removed 3 checkpoints (4.0 KiB) as checkpoint.keep_after_training: best says"
    assert names(filled) == ["step-00000020"]
    assert (filled.checkpoints / "best").read_text() == "step-00000020" and not (filled.checkpoints / "latest").exists()
    assert {one["name"]: one["bytes"] for one in filled.read()["removed_checkpoints"]} == {
        "step-00000010": 2048, "step-00000030": 2048, "step-00000040.abandoned": 0,
    }  # fmt: skip
    with pytest.raises(UserError, match="no checkpoint latest") as error:
        find_checkpoint(filled, "latest")
    assert "step-00000030" in error.value.remedy and "step-00000020 is still there." in error.value.remedy


def test_the_latest_stands_for_the_best_where_nothing_was_validated(filled):
    (filled.checkpoints / "best").unlink()
    apply_retention(filled, "best")
    assert names(filled) == ["step-00000030"] and (filled.checkpoints / "latest").exists()


def test_none(filled):
    assert apply_retention(filled, "none").startswith("removed 4 checkpoints (6.0 KiB)")
    assert [path.name for path in filled.checkpoints.iterdir()] == []
    with pytest.raises(UserError, match="no checkpoint best") as error:
        find_checkpoint(filled, "best")
    assert str(filled.model) in error.value.remedy and "train again" in error.value.remedy


def test_a_run_without_checkpoints_says_nothing(run):
    assert [apply_retention(run, keep) for keep in ("all", "best", "none")] == ["", "", ""]


def test_the_key_does_not_change_which_training_it_is():
    assert training_values(make_recipe(checkpoint={"keep_after_training": "none"})) == training_values(make_recipe())
