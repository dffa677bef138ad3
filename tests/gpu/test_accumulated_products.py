"""On CUDA: gradients of weights that matrix products add up are those of float64, nearer than autograd's."""

import copy

import pytest
import torch
from torch import nn

from finetune.models.accumulated_products import accumulating, convert_linears

pytestmark = pytest.mark.gpu


def test_sums_over_micro_batches_equal_float64():
    torch.manual_seed(0)
    dtype = torch.bfloat16
    plain = nn.Sequential(nn.Linear(256, 512), nn.Tanh(), nn.Linear(512, 128)).to("cuda", dtype)
    ours, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    assert convert_linears(ours) == 2
    for _ in range(6):
        x = torch.randn(300, 256, device="cuda", dtype=dtype)
        for model in (plain, exact):
            model(x.to(next(model.parameters()).dtype)).square().mean().backward()
        with accumulating():
            ours(x).square().mean().backward()
    for mine, theirs, right in zip(ours.parameters(), plain.parameters(), exact.parameters(), strict=True):
        errors = [float((found.grad.double() - right.grad).norm() / right.grad.norm()) for found in (mine, theirs)]
        assert errors[0] < 1e-2
        if mine.dim() > 1:
            assert errors[0] < errors[1]
