"""Proves that BatchNorm's gradients are right for one image too, whatever the memory formats; torch's own are not."""

import itertools

import pytest
import torch
from torch import nn

from finetune.models.batchnorm import fix_batchnorm_gradients, freeze_batchnorm


def laid_out(values: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """The same values as a view of [batch, positions, channels], as behind a transformer, or channels first."""
    batch, channels, height, width = values.shape
    if not channels_last:
        return values.clone(memory_format=torch.contiguous_format)
    rows = values.permute(0, 2, 3, 1).reshape(batch, height * width, channels).contiguous()
    return rows.permute(0, 2, 1).reshape(batch, channels, height, width)


def gradients(layer: nn.Module, values: torch.Tensor, upstream: torch.Tensor) -> list[torch.Tensor]:
    values = values.detach().requires_grad_()
    layer.zero_grad()
    layer(values).backward(upstream)
    return [values.grad, layer.weight.grad, layer.bias.grad]


def wrong_by(batch: int, frozen: bool, mended: bool) -> float:
    """The largest difference from the gradients with both in the same memory format."""
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(8)
    if frozen:
        freeze_batchnorm(layer)
    values, upstream = torch.randn(batch, 8, 2, 2), torch.randn(batch, 8, 2, 2)
    expected = [gradient.clone() for gradient in gradients(layer, values, upstream)]
    if mended:
        assert fix_batchnorm_gradients(layer) == 1
    worst = 0.0
    for one, other in itertools.product((False, True), repeat=2):
        found = gradients(layer, laid_out(values, one), laid_out(upstream, other))
        worst = max(worst, *(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)))
    return worst


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_gradients_do_not_depend_on_the_memory_format(batch, frozen):
    assert wrong_by(batch, frozen, mended=True) < 1e-5


def test_the_fault_is_still_there():
    """When this fails, torch has mended it, and `mend_batchnorm` can go."""
    assert wrong_by(1, False, mended=False) > 0.1
    assert wrong_by(1, True, mended=False) > 0.1
