"""`model.gradient_checkpointing: light` on two ranks: the losses of a run that keeps everything, to the last bit."""

import pytest

from tests.e2e import tiny

SETS = ("training.epochs=1", "evaluation.every=6", "checkpoint.every=6")


@pytest.mark.parametrize("engine", ["none", "zero2", "zero3"])
def test_losses_do_not_change(workers, engine):
    sets = (*SETS, f"parallel.deepspeed={engine}")
    plain = workers.train(2, f"all-{engine}", *sets)
    light = workers.train(2, f"light-{engine}", *sets, "model.gradient_checkpointing=light")
    assert len(tiny.losses(light)) == 6 and tiny.losses(light) == tiny.losses(plain)
