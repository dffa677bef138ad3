"""Proves that the kernels under synchronized BatchNorm exist on CUDA for every type and equal nn.BatchNorm2d."""

import pytest
import torch
from torch import nn

from finetune.distributed.batchnorm import _global_statistics, _Normalize

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 5e-3}


def compare(device, dtype, memory_format):
    torch.manual_seed(0)
    x = (torch.randn(8, 5, 6, 6, device=device) * 2 + 3).to(dtype).contiguous(memory_format=memory_format)
    dy = torch.randn_like(x)
    plain = nn.BatchNorm2d(5, device=device, dtype=torch.float64)
    nn.init.normal_(plain.weight)
    expected_x = x.double().requires_grad_()
    expected = plain(expected_x)
    expected.backward(dy.double())

    x.requires_grad_()
    weight, bias = (p.detach().clone().to(dtype).requires_grad_() for p in (plain.weight, plain.bias))
    mean, var, count = _global_statistics(x.detach(), False, None, 1)
    y = _Normalize.apply(x, weight, bias, mean, var, 1 / count, plain.eps, None, 1)
    y.backward(dy)
    tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    for got, wanted in ((y, expected), (x.grad, expected_x.grad)):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), wanted, **tolerance)
    torch.testing.assert_close(weight.grad.double(), plain.weight.grad, rtol=TOLERANCE[dtype], atol=0.2)
    torch.testing.assert_close(bias.grad.double(), plain.bias.grad, rtol=TOLERANCE[dtype], atol=0.2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_forward_and_backward_on_cuda(dtype, memory_format):
    compare("cuda", dtype, memory_format)
