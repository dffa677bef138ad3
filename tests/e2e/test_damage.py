"""Proves that a checkpoint is whole or passed over: any flipped byte is found and told, the newest whole one is taken."""

import shutil
from pathlib import Path

import pytest

from finetune.errors import Stopped, UserError
from finetune.training.checkpoint_reader import find_checkpoints, open_checkpoint
from tests.e2e import tiny
from tests.e2e.conftest import Ended
from tests.e2e.inside import TERM
from tests.faults import flip_bit

pytestmark = pytest.mark.timeout(900)  # a story is one fixture


@pytest.fixture(scope="module")
def stopped(workers):
    """A run that was stopped at step 12, with checkpoints of steps 10 and 12."""
    with pytest.raises(Ended) as ended:
        workers.train(2, "stopped", signals={12: (1, TERM)})
    assert isinstance(ended.value.first, Stopped)
    return workers.folder / "stopped"


@pytest.fixture
def copy(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "copy")


def names(run: Path) -> list[str]:
    return [path.name for path in find_checkpoints(run / "checkpoints")]


def test_one_flipped_bit_in_any_file_is_found(stopped, tmp_path):
    assert names(stopped) == ["step-00000012", "step-00000010"]
    checkpoint = stopped / "checkpoints" / "step-00000012"
    files = sorted(path.name for path in checkpoint.iterdir())
    assert files == ["manifest.json", "state-00000-of-00002.safetensors", "state-00001-of-00002.safetensors"]
    for name in files:
        for at in (0.0, 0.01, 0.3, 0.77, 1.0):
            shutil.copytree(checkpoint, tmp_path / "copy")
            open_checkpoint(tmp_path / "copy")
            flip_bit(tmp_path / "copy" / name, at)
            with pytest.raises(UserError, match=name if name != "manifest.json" else "not a whole checkpoint"):
                open_checkpoint(tmp_path / "copy")
            shutil.rmtree(tmp_path / "copy")


@pytest.mark.parametrize("fault", ["flipped", "short", "missing", "no manifest"])
def test_a_damaged_one_is_told_and_set_aside_and_the_one_before_it_taken(fault, copy, workers):
    victim = copy / "checkpoints" / "step-00000012" / "state-00001-of-00002.safetensors"
    if fault == "flipped":
        flip_bit(victim)
    elif fault == "short":
        victim.write_bytes(victim.read_bytes()[:-1])
    elif fault == "missing":
        victim.unlink()
    else:
        victim.with_name("manifest.json").unlink()
    with pytest.raises(Ended):
        workers.train(2, copy, signals={14: (0, TERM)})
    said = (copy / "logs" / "said-0.txt").read_text()
    assert "skipping a damaged checkpoint, kept as step-00000012.damaged" in said
    assert f"resuming from step 10 of {tiny.STEPS}" in said
    assert (copy / "checkpoints" / "step-00000012.damaged").is_dir()
    assert [row["step"] for row in tiny.rows(copy)] == list(range(1, 15))


def test_what_a_killed_save_left_is_ignored_and_removed(copy, workers):
    half = copy / "checkpoints" / "step-00000015.incomplete"
    shutil.copytree(copy / "checkpoints" / "step-00000012", half)
    with pytest.raises(Ended):
        workers.train(2, copy, signals={14: (0, TERM)})
    assert f"resuming from step 12 of {tiny.STEPS}" in (copy / "logs" / "said-0.txt").read_text()
    assert not half.exists()
