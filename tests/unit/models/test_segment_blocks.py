"""Attention of segments in padded blocks equals that of each segment alone, in values and gradients, in few kernel calls."""

from itertools import pairwise

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.counting import Count
from finetune.models import segment_blocks
from finetune.models.segment_blocks import as_rows, attend_in_blocks

BORDERS = [0, 40, 45, 62, 71, 72, 84, 124, 224]
HEADS, KEYS, SIZE = 4, 2, 8


def tensors():
    torch.manual_seed(0)
    shapes = ((1, heads, BORDERS[-1], SIZE) for heads in (HEADS, KEYS, KEYS))
    return [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def one_by_one(query, key, value, causal, window):
    parts = []
    for start, end in pairwise(BORDERS):
        q, k, v = (tensor[:, :, start:end] for tensor in (query, key, value))
        mask = torch.ones(end - start, end - start, dtype=torch.bool)
        mask = mask.tril() if causal else mask
        if window is not None:
            mask = mask.triu(1 - window).tril(window - 1)
        parts.append(scaled_dot_product_attention(q, k, v, mask, scale=0.3, enable_gqa=True).transpose(1, 2))
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("window", [None, 3, 10, 1000])
@pytest.mark.parametrize("causal", [True, False])
def test_values_and_gradients_are_those_of_segments_alone(causal, window, monkeypatch):
    calls = []

    def counted(*arguments, **options):
        calls.append(1)
        return scaled_dot_product_attention(*arguments, **options)

    monkeypatch.setattr(segment_blocks, "scaled_dot_product_attention", counted)
    inputs = tensors()
    weights = torch.randn(1, BORDERS[-1], HEADS, SIZE, dtype=torch.float64)
    expected = one_by_one(*inputs, causal, window)
    wanted = torch.autograd.grad((expected * weights).sum(), inputs)
    borders = torch.tensor(BORDERS, dtype=torch.int32)
    found = attend_in_blocks(*inputs, borders, causal=causal, window=window, dropout=0.0, scaling=0.3)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad((found * weights).sum(), inputs)
    for gradient, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-12, atol=1e-12)
    assert len(calls) == 3  # 100 tokens; 40 and 40; 17, 12, 9, 5 and 1


def test_long_segments_are_not_padded_much_on_a_cpu():
    """A kernel call costs a CPU less than the scores of 512 x 512 positions for a segment of 450 tokens."""
    borders = [0, 512, 1024, 1474, 1970, 2070]
    on_cpu, on_gpu = (
        [(block.count, block.width) for block in segment_blocks._divide(borders, torch.device(kind)).blocks]
        for kind in ("cpu", "meta")
    )
    assert on_cpu == [(3, 512), (1, 450), (1, 100)]
    assert on_gpu == [(4, 512), (1, 100)]


def test_dropout_reaches_every_segment():
    borders = torch.tensor(BORDERS, dtype=torch.int32)
    query, key, value = (tensor.detach() for tensor in tensors())
    plain, dropped = (
        attend_in_blocks(query, key, value, borders, causal=True, window=None, dropout=share, scaling=None)
        for share in (0.0, 0.5)
    )
    changed = (plain != dropped).any(-1).any(-1)[0]
    assert all(changed[start:end].any() for start, end in pairwise(BORDERS) if end - start > 4)
    assert torch.isfinite(dropped).all()


def test_rows_and_their_gradient_are_views() -> None:
    """No operator but views, and gradients lie as the projections of a layer gave their results."""
    projected = torch.randn(1, 10, 4, 8, requires_grad=True)
    incoming = torch.randn(10, 4, 8)
    with Count() as count:
        rows = as_rows(projected.transpose(1, 2))
        (gradient,) = torch.autograd.grad(rows, projected, incoming)
    assert not count.operators
    assert torch.equal(rows, projected[0]) and torch.equal(gradient[0], incoming) and gradient.is_contiguous()
