"""Proves how a training fails: it says what and where, keeps its checkpoints, and starts again only where that helps."""

import re
import time

import pytest

from finetune.training.checkpoint_reader import find_checkpoints, open_checkpoint
from tests.e2e import tiny
from tests.e2e.conftest import Ended

pytestmark = pytest.mark.timeout(900)


def ports(output: str) -> list[str]:
    return re.findall(r"--main_process_port (\d+)", output)


def test_a_loss_that_is_no_number_is_named_and_not_tried_for_ever(workplace, finetune):
    training = {**tiny.recipe()["training"], "learning_rate": 1e30, "warmup": 0}
    tiny.write_recipe(workplace, "wild.yaml", training=training, checkpoint={"every": 1}, evaluation={"samples": 0})
    finished = finetune("train", "wild.yaml", "--run-dir", "wild", "--restarts", "3")
    assert finished.code == 1, finished.output
    told = re.findall(r"step (\d+), examples \[([\d, ]+)\]: the loss is nan", finished.output)
    assert len(told) == 2 and told[0] == told[1], finished.output
    step, ids = int(told[0][0]), [int(i) for i in told[0][1].split(",")]
    assert set(ids) <= set(range(tiny.TRAIN_ROWS)) and ids
    assert f"the checkpoint of step {step - 1} is good" in finished.output
    assert "Traceback" not in finished.output
    assert len(set(ports(finished.output))) == 2, "one fresh start, then none, for no step was gained"
    run = workplace / "wild"
    assert open_checkpoint(find_checkpoints(run / "checkpoints")[0]).step == step - 1
    assert [row["step"] for row in tiny.rows(run)] == list(range(1, step))


@pytest.mark.parametrize("stage", ["zero3", "none"])
def test_an_error_of_one_rank_in_an_evaluation_ends_all_and_is_told_alone(workers, stage):
    began = time.monotonic()
    with pytest.raises(Ended) as ended:
        # padded: without padding, the few examples are one micro-batch, and rank 1 decodes nothing
        workers.train(2, f"fault-{stage}", f"parallel.deepspeed={stage}", "data.packing=none", signals={18: (1, 0)})
    first, *others = ended.value.failures
    assert first.rank == 1 and first.what == "ValueError: a fault of this rank alone" and not first.echo
    assert all(other.echo for other in others), ended.value
    assert time.monotonic() - began < 120, "nobody waits for a rank that is gone"
    run = workers.folder / f"fault-{stage}"
    # of step 15, or of step 10 where that of step 15 was still being written beside the training
    assert open_checkpoint(find_checkpoints(run / "checkpoints")[0]).step in (10, 15)
