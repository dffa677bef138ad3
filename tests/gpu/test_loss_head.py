"""On CUDA: the loss head's kernels, and its operators, are torch's cross-entropy in float64."""

import pytest
import torch
from torch.nn import functional

from finetune.models import linear_loss, summed_loss
from finetune.models.linear_loss import LogitTransform, linear_loss_sum, linear_losses, sum_losses
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


@pytest.mark.parametrize("chunk", [999, 300])
@pytest.mark.parametrize("biased", [False, True])
def test_gradients_of_the_forward_pass_equal_float64(chunk, biased, monkeypatch):
    """A factor that bf16 would round is multiplied in float32."""
    monkeypatch.setattr(summed_loss, "CHUNK_BYTES", 2 * VOCABULARY * chunk)
    hidden, weight, ids = make(torch.bfloat16)
    bias = torch.randn(VOCABULARY, device="cuda", dtype=torch.bfloat16).requires_grad_() if biased else None
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight, *([bias] if biased else []))]
    logits = exact[0] @ exact[1].T + (exact[2] if biased else 0.0)
    wanted = functional.cross_entropy(logits, ids, reduction="sum") * 1.0039
    wanted.backward()
    found = linear_loss_sum(hidden, weight, bias, ids, LogitTransform()) * 1.0039
    assert type(found.grad_fn.next_functions[0][0]).__name__ == "_SummedLossBackward"
    found.backward()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-3)
    for mine, other in zip((hidden, weight, bias), exact, strict=False):
        assert (mine.grad - other.grad).norm() <= 1.5e-2 * other.grad.norm()
        assert (mine.grad * other.grad).sum() / other.grad.square().sum() == pytest.approx(1.0, abs=1e-3)
        if mine is not bias:
            assert not mine.grad[ids < 0].any() if mine is hidden else True


def test_a_factor_is_multiplied_in_float32():
    x = torch.ones(10_001, device="cuda", dtype=torch.bfloat16)
    linear_loss._load_kernels().multiply_in_place(x, torch.tensor(1.0 + 2**-8 + 2**-12, device="cuda"))
    assert (x == 1.0 + 2**-7).all()  # the nearest of bf16; 1 + 2^-8 is a tie that goes to 1


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
