"""Proves that a disk which fills up costs no checkpoint and no row: told with path and bytes, and gone on from."""

import json

import pytest

from finetune.errors import TrainingFailed
from finetune.training.checkpoint_reader import find_checkpoints, open_checkpoint
from tests.e2e import tiny
from tests.e2e.conftest import Ended
from tests.e2e.inside import TERM, fill_disk
from tests.faults import small_disk

pytestmark = pytest.mark.timeout(900)
SHORT = "training.epochs=2"  # 12 steps
MEGABYTE = 1 << 20


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", 96 * MEGABYTE) as folder:
        yield folder


def whole_rows(run):
    """Every line of metrics.jsonl is JSON, and ends."""
    text = (run / "metrics.jsonl").read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def go_on(workers, run, undisturbed, *sets):
    """With space again, the same command ends as if nothing had been."""
    (run / "filler").unlink()
    workers.train(2, run, SHORT, *sets)
    assert tiny.comparable(run) == tiny.comparable(undisturbed)


@pytest.fixture(scope="module")
def twelve_steps(workers):
    return workers.train(2, "twelve", SHORT)


def test_a_full_disk_at_a_save_is_told_with_path_and_bytes(disk, workers, twelve_steps):
    run = disk / "run"
    with pytest.raises(Ended) as ended:
        workers.train(2, run, SHORT, signals={8: (1, -8 * MEGABYTE)})
    said = str(ended.value.first)
    assert isinstance(ended.value.first, TrainingFailed), ended.value
    assert "the disk is full" in said and "step-00000010.incomplete/state-0000" in said and "MiB needed" in said, said
    assert "The previous checkpoint is untouched" in said
    assert [open_checkpoint(path).step for path in find_checkpoints(run / "checkpoints")] == [5]
    assert not list((run / "checkpoints").glob("*.incomplete"))
    assert [row["step"] for row in whole_rows(run) if row["split"] == "train"][:10] == list(range(1, 11))
    go_on(workers, run, twelve_steps)


def test_a_full_disk_at_a_row_leaves_whole_rows_and_is_told(disk, workers, twelve_steps):
    """Rows that fit into the last page of the file (4,096 bytes) need no space: where all twelve do, the evaluation of step 12
    is the first that finds none. It comes before the checkpoint of step 12, which is the next that is due.
    """
    run, sets = disk / "run", ("checkpoint.every=6", "tracking.wandb=offline")
    with pytest.raises(Ended) as ended:
        workers.train(2, run, SHORT, *sets, signals={9: (0, -1)})
    said = str(ended.value.first)
    assert "No space left" in said and ("metrics.jsonl" in said or "the disk is full" in said), ended.value
    assert {failure.exit_code for failure in ended.value.failures} == {1}
    steps = [row["step"] for row in whole_rows(run)]
    assert steps == list(range(1, len(steps) + 1)) and 8 <= len(steps) <= 12
    assert [open_checkpoint(path).step for path in find_checkpoints(run / "checkpoints")] == [6]
    assert not list((run / "logs").glob(".failure*")), "what was reserved has been used"
    go_on(workers, run, twelve_steps, *sets)


def test_space_is_checked_before_the_first_step(disk, workers):
    run = disk / "run"
    with pytest.raises(Ended):
        workers.train(2, run, SHORT, signals={2: (0, TERM)})
    fill_disk(run, leave=20 * MEGABYTE)
    with pytest.raises(Ended) as ended:
        workers.train(2, run, SHORT)
    said = str(ended.value.first)
    assert "checkpoints of" in said and "are free" in said and str(run / "checkpoints") in said, said
    assert [row["step"] for row in whole_rows(run)] == [1, 2]


def test_a_full_disk_during_an_export_leaves_nothing_and_is_told(tmp_path, twelve_steps, finetune):
    with small_disk(tmp_path / "small", 2 * MEGABYTE) as folder:
        (folder / "out.incomplete-999999999").mkdir()  # of an export that was killed
        done = finetune("export", str(twelve_steps), "--output", str(folder / "out"))
        assert done.code == 1, done.output
        assert f"{folder / 'out'}: cannot write: No space left on device (" in done.output and " free)" in done.output
        assert "Traceback" not in done.output and "bug" not in done.output
        assert list(folder.iterdir()) == []
