"""Tests that the norm of gradients is exact for tensors of any size and dtype, and that clipping uses it."""

from __future__ import annotations

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from finetune.distributed.gradient_norm import clip_gradients, total_norm


def test_a_large_tensor_loses_no_digit() -> None:
    """Ones after a large value: in float32, 64 of their squares are half a unit in the last place of the sum."""
    gradient = torch.ones(1 << 24)
    gradient[:64] = 32768.0
    exact = math.sqrt(64 * 32768.0**2 + len(gradient) - 64)
    assert float(total_norm([gradient])) == pytest.approx(exact, rel=1e-12)
    naive = torch.zeros(64)
    for part in gradient.split(1 << 12):  # 64 running sums of float32, as vector lanes have
        naive += part.view(-1, 64).square().sum(0)
    assert abs(float(naive.sum().sqrt()) - exact) > 1e-5 * exact


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_is_the_norm_in_float64(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    gradients = [torch.randn(shape).to(dtype) for shape in ((7, 5), (3,), ())]
    exact = torch.cat([gradient.double().reshape(-1) for gradient in gradients]).norm()
    assert total_norm(gradients).dtype == torch.float64
    torch.testing.assert_close(total_norm(gradients), exact, rtol=1e-14, atol=0.0)
    assert float(total_norm([])) == 0.0


@pytest.mark.parametrize(("limit", "after"), [(0.0, 5.0), (10.0, 5.0), (0.5, 0.5)])
def test_clips_to_the_limit(limit: float, after: float) -> None:
    parameters = [
        torch.nn.Parameter(torch.zeros(2)),
        torch.nn.Parameter(torch.zeros(1)),
        torch.nn.Parameter(torch.zeros(1)),
    ]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert float(clip_gradients(parameters, limit)) == 5.0
    assert float(total_norm([x.grad for x in parameters if x.grad is not None])) == pytest.approx(after, rel=1e-5)


def test_a_gradient_that_is_not_finite_is_seen() -> None:
    assert math.isnan(float(total_norm([torch.tensor([1.0, math.nan])])))
    assert math.isinf(float(total_norm([torch.tensor([1.0, math.inf])])))


def test_asks_the_device_for_nothing() -> None:
    with FakeTensorMode() as mode:
        parameter = torch.nn.Parameter(mode.from_tensor(torch.zeros(3)))
        parameter.grad = mode.from_tensor(torch.ones(3))
        assert isinstance(clip_gradients([parameter], 0.5), FakeTensor)
