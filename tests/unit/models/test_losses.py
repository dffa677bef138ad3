"""Tests that losses are float32 sums equal to those of torch, in one piece and in chunks, with their gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from finetune.models import losses
from finetune.models.batchnorm import freeze_batchnorm, has_batchnorm


@pytest.mark.parametrize("elements", [1 << 25, 64, 1])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_sum(monkeypatch: pytest.MonkeyPatch, elements: int, smoothing: float) -> None:
    monkeypatch.setattr(losses, "_CHUNK_ELEMENTS", elements)
    torch.manual_seed(0)
    logits = torch.randn(10, 32, requires_grad=True)
    labels = torch.randint(32, (10,))
    labels[[2, 7]] = losses.IGNORE
    wanted = functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
    (wanted_gradient,) = torch.autograd.grad(wanted, logits)
    found = losses.cross_entropy_sum(logits, labels, label_smoothing=smoothing)
    (gradient,) = torch.autograd.grad(found, logits)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(gradient, wanted_gradient)
    each = losses.cross_entropy_each(logits, labels)
    torch.testing.assert_close(each.sum(), functional.cross_entropy(logits, labels, reduction="sum"))
    assert each[2] == each[7] == 0


def test_zero_rows_give_a_connected_zero() -> None:
    logits = torch.randn(3, 5, requires_grad=True)
    loss = losses.cross_entropy_sum(logits, torch.full((3,), losses.IGNORE))
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and not logits.grad.any()


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits = torch.randn(2000, 8).bfloat16()
    labels = torch.randint(8, (2000,))
    found = losses.cross_entropy_sum(logits, labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, functional.cross_entropy(logits.float(), labels, reduction="sum"))


def test_binary_cross_entropy_is_a_mean_over_classes_of_each_example() -> None:
    logits, targets = torch.tensor([[0.0, 2.0], [1.0, -1.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    wanted = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
    torch.testing.assert_close(losses.binary_cross_entropy_each(logits, targets), wanted)
    smoothed = losses.binary_cross_entropy_each(logits, targets, label_smoothing=0.2)
    wanted = functional.binary_cross_entropy_with_logits(logits, targets * 0.8 + 0.1, reduction="none").mean(1)
    torch.testing.assert_close(smoothed, wanted)


def test_frozen_batchnorm_keeps_its_statistics_and_still_learns() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2), torch.nn.Dropout())
    assert has_batchnorm(model) and not has_batchnorm(torch.nn.Linear(1, 1))
    assert freeze_batchnorm(model) == 1
    before = model[1].running_mean.clone()
    model.eval()
    model.train()
    assert model.training and model[2].training and not model[1].training
    model(torch.randn(4, 1, 3, 3)).square().sum().backward()
    assert torch.equal(before, model[1].running_mean)
    assert model[1].weight.grad is not None and model[1].weight.grad.any()
