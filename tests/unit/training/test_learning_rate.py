"""The learning rate by hand, and against torch's own schedulers where they mean the same."""

import pytest
import torch

from finetune.recipe.training import TrainingSection
from finetune.training.learning_rate import learning_rate, warmup_steps


def rates(total, **settings):
    section = TrainingSection(learning_rate=1.0, **settings)
    return [learning_rate(step, total, section) for step in range(total)]


def test_linear_decay_is_that_of_transformers():
    from transformers import get_linear_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = get_linear_schedule_with_warmup(optimizer, 0, 10)
    expected = []
    for _ in range(10):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates(10, schedule="linear") == pytest.approx(expected)


def test_warmup_rises_to_the_peak_and_never_starts_at_nothing():
    assert rates(10, schedule="constant", warmup=4)[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_warmup_below_one_is_a_share_of_all_steps():
    assert warmup_steps(TrainingSection(warmup=0.1), 200) == 20
    assert warmup_steps(TrainingSection(warmup=50), 200) == 50


def test_cosine_ends_near_its_floor_and_never_below():
    found = rates(100, schedule="cosine", min_learning_rate=0.1)
    assert found[0] == pytest.approx(1.0)
    assert found[50] == pytest.approx(0.55)
    assert min(found) >= 0.1
    assert found == sorted(found, reverse=True)


def test_inverse_square_root_goes_on_from_warmup():
    found = rates(100, schedule="inverse_sqrt", warmup=9)
    assert found[9] == pytest.approx(1.0)
    assert found[39] == pytest.approx(0.5)
