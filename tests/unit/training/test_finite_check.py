"""Proves when figures that are not finite end a training: at once or a step later, and not where an engine scales the loss."""

import math
from types import SimpleNamespace

import pytest
import torch

from finetune.distributed.stopwatch import Stopwatch
from finetune.distributed.transfer import Transfer
from finetune.errors import TrainingFailed
from finetune.training.finite_check import FiniteCheck
from finetune.training.step import StepResult


def check(*, scales_loss=False):
    engine = SimpleNamespace(scales_loss=scales_loss, session=SimpleNamespace(all_gather=lambda own: [own]))
    return FiniteCheck(engine, SimpleNamespace(finish=lambda: None, latest=None))


def result(loss=1.0, norm=1.0):
    figures = Transfer(torch.tensor([loss, norm], dtype=torch.float64))
    return StepResult(figures, 1, 0, 1, False, Stopwatch(torch.device("cpu")))


def test_a_norm_that_overflowed_is_a_skipped_step_where_the_loss_is_scaled():
    check(scales_loss=True).note(result(norm=math.inf), 3, now=True)
    with pytest.raises(TrainingFailed, match="the gradient norm is inf") as raised:
        check().note(result(norm=math.inf), 3, now=True)
    assert raised.value.where == "step 3"


def test_a_loss_that_is_not_finite_ends_it_under_every_engine():
    for scales_loss in (True, False):
        with pytest.raises(TrainingFailed, match="the loss is nan"):
            check(scales_loss=scales_loss).note(result(loss=math.nan), 3, now=True)


def test_what_is_not_read_at_once_is_read_with_the_next_step_and_names_its_own():
    waiting = check()
    waiting.note(result(loss=math.nan), 3, now=False)
    with pytest.raises(TrainingFailed) as raised:
        waiting.note(result(), 4, now=False)
    assert raised.value.where == "step 3"
