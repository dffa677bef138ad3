"""On CUDA: the loss head's kernels, and its operators, are torch's cross-entropy in float64."""

import pytest
import torch
from torch.nn import functional

from finetune.models import linear_loss
from finetune.models.linear_loss import LogitTransform, linear_losses, sum_losses
from finetune.models.losses import IGNORE

pytestmark = pytest.mark.gpu
ROWS, HIDDEN, VOCABULARY = 1000, 128, 5003


def make(dtype):
    torch.manual_seed(0)
    hidden = torch.randn(ROWS, HIDDEN, device="cuda", dtype=dtype)
    weight = torch.randn(VOCABULARY, HIDDEN, device="cuda", dtype=dtype) * 0.2
    ids = torch.randint(VOCABULARY, (ROWS,), device="cuda")
    ids[[3, 700]] = IGNORE
    return hidden.requires_grad_(), weight.requires_grad_(), ids


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("columns", [700, 5003])
def test_kernels_equal_float64(dtype, columns, autocast, monkeypatch):
    monkeypatch.setattr(linear_loss, "KERNEL_BLOCK_BYTES", 2 * ROWS * columns)
    assert linear_loss._load_kernels() is not None
    hidden, weight, ids = make(torch.float32 if autocast else dtype)
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    wanted = functional.cross_entropy(exact[0] @ exact[1].T, ids, reduction="sum") / 7
    wanted.backward()
    with torch.autocast("cuda", dtype, enabled=autocast):
        found = sum_losses(linear_losses(hidden, weight, None, ids, LogitTransform())) / 7
    found.backward()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-3)
    for mine, other in zip((hidden, weight), exact, strict=True):
        assert (mine.grad - other.grad).norm() <= 1.5e-2 * other.grad.norm()


def test_a_row_that_is_not_finite_is_seen():
    hidden, weight, ids = make(torch.bfloat16)
    with torch.no_grad():
        hidden[5, 0] = float("nan")
    losses = linear_losses(hidden, weight, None, ids, LogitTransform())
    assert losses.isnan().nonzero().flatten().tolist() == [5]


def test_float32_equals_float64():
    hidden, weight, ids = make(torch.float32)
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    functional.cross_entropy(exact[0] @ exact[1].T, ids, reduction="sum").backward()
    sum_losses(linear_losses(hidden, weight, None, ids, LogitTransform())).backward()
    for mine, other in zip((hidden, weight), exact, strict=True):
        assert (mine.grad - other.grad).norm() <= 1e-5 * other.grad.norm()
