"""Tests that a linear head's loss and gradients, computed block by block, are those of torch's cross-entropy in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional

from benchmarks.counting import Count
from finetune.models import linear_loss
from finetune.models.linear_loss import LogitTransform, column_blocks, linear_losses, sum_losses
from finetune.models.losses import IGNORE

ROWS, HIDDEN, VOCABULARY = 23, 16, 50
CAPPED = LogitTransform(scale=0.5, cap=3.0)


def linear_loss_sum(*arguments: Any, **options: Any) -> torch.Tensor:
    return sum_losses(linear_losses(*arguments, **options))


@pytest.fixture(params=[VOCABULARY, 7, 1], ids=["one block", "blocks", "single columns"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(linear_loss, "_NARROWEST", 1)
    monkeypatch.setattr(linear_loss, "BLOCK_BYTES", 4 * ROWS * request.param)
    return int(request.param)


def _inputs(dtype: torch.dtype = torch.float32, *, bias: bool = False, frozen: bool = False) -> dict[str, Any]:
    torch.manual_seed(3)
    hidden, weight = torch.randn(ROWS, HIDDEN, dtype=dtype), torch.randn(VOCABULARY, HIDDEN, dtype=dtype)
    ids = torch.randint(VOCABULARY, (ROWS,))
    ids[[2, 7]] = IGNORE
    return {
        "hidden": hidden.requires_grad_(),
        "weight": weight.requires_grad_(not frozen),
        "bias": torch.randn(VOCABULARY, dtype=dtype).requires_grad_() if bias else None,
        "target_ids": ids,
    }


def _reference(inputs: dict[str, Any], transform: LogitTransform, smoothing: float, factor: Any) -> list[torch.Tensor]:
    """In float64: [losses, gradient of hidden states, of the weight, of the bias] of what requires gradients."""
    hidden, weight, bias = (
        None if (x := inputs[name]) is None else x.detach().double().requires_grad_(x.requires_grad)
        for name in ("hidden", "weight", "bias")
    )
    losses = functional.cross_entropy(
        transform(functional.linear(hidden, weight, bias)),
        inputs["target_ids"],
        ignore_index=IGNORE,
        label_smoothing=smoothing,
        reduction="none",
    )
    (losses * factor).sum().backward()
    grads = [x.grad for x in (hidden, weight, bias) if x is not None and x.grad is not None]
    return [losses.detach(), *grads]


def _found(losses: torch.Tensor, factor: Any, inputs: dict[str, Any]) -> list[torch.Tensor]:
    (losses * factor).sum().backward()
    grads = [inputs[name].grad for name in ("hidden", "weight", "bias") if inputs[name] is not None]
    return [losses.detach(), *(grad for grad in grads if grad is not None)]


@pytest.mark.parametrize("transform", [LogitTransform(), LogitTransform(scale=0.0625), CAPPED], ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", [{}, {"bias": True}, {"frozen": True}], ids=str)
def test_equals_float64(blocks: int, transform: LogitTransform, smoothing: float, kind: dict[str, bool]) -> None:
    inputs, factor = _inputs(**kind), 0.37
    wanted = _reference(inputs, transform, smoothing, factor)
    total = linear_loss_sum(**inputs, transform=transform, label_smoothing=smoothing)
    found = _found(total, factor, inputs)
    assert total.dtype == torch.float32 and len(found) == len(wanted) == 3 - ("frozen" in kind) + ("bias" in kind)
    assert total.item() == pytest.approx(wanted[0].sum().item(), rel=1e-6)
    for mine, theirs in zip(found[1:], wanted[1:], strict=True):
        assert (mine.double() - theirs).norm() <= 1e-6 * theirs.norm()


@pytest.mark.parametrize("transform", [LogitTransform(), CAPPED], ids=str)
@pytest.mark.parametrize("kind", [{}, {"bias": True}, {"frozen": True}], ids=str)
def test_losses_of_rows_equal_float64(blocks: int, transform: LogitTransform, kind: dict[str, bool]) -> None:
    """Each row with a gradient of its own, as preference losses give them."""
    inputs, factor = _inputs(**kind), torch.linspace(-2.0, 3.0, ROWS)
    wanted = _reference(inputs, transform, 0.0, factor)
    found = _found(linear_losses(**inputs, transform=transform), factor, inputs)
    assert found[0].dtype == torch.float32 and found[0][2] == found[0][7] == 0
    for mine, theirs in zip(found, wanted, strict=True):
        assert (mine.double() - theirs).norm() <= 1e-6 * theirs.norm()


@pytest.mark.parametrize("rows", [False, True], ids=["sum", "rows"])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_as_close_to_float64_as_torch_is(blocks: int, autocast: bool, rows: bool) -> None:
    """Weights in bf16, or in float32 under autocast: beside the logits route, which rounds in the same places."""
    inputs = _inputs(torch.float32 if autocast else torch.bfloat16)
    factor: Any = torch.linspace(0.5, 1.5, ROWS) if rows else 0.37
    wanted = _reference(inputs, LogitTransform(), 0.0, factor)
    plain = {name: None if x is None else x.detach().clone() for name, x in inputs.items()}
    for name in ("hidden", "weight"):
        plain[name].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        head = linear_losses if rows else linear_loss_sum
        found = _found(head(**inputs, transform=LogitTransform()), factor, inputs)
        logits = functional.linear(plain["hidden"], plain["weight"]).float()
        theirs = functional.cross_entropy(logits, plain["target_ids"], ignore_index=IGNORE, reduction="none")
        theirs = _found(theirs, factor, plain)
    for mine, other, exact in zip(found[1:], theirs[1:], wanted[1:], strict=True):
        assert mine.dtype == other.dtype == (torch.float32 if autocast else torch.bfloat16)
        distance = (mine.double() - exact).norm() / exact.norm()
        assert distance <= max(1.5 * (other.double() - exact).norm() / exact.norm(), 1e-3)
        assert distance < 1e-2


def test_float16_gradients_do_not_underflow_before_the_loss_scale_reaches_them() -> None:
    inputs = _inputs(torch.float16)
    with torch.no_grad():
        inputs["weight"].mul_(1e-4)
        inputs["hidden"].mul_(1e-3)
    scale = 2.0**12
    wanted = _reference(inputs, LogitTransform(), 0.0, scale)
    found = _found(linear_loss_sum(**inputs, transform=LogitTransform()), scale, inputs)
    for mine, exact in zip(found[1:], wanted[1:], strict=True):
        assert (mine.double() - exact).norm() <= 2e-3 * exact.norm()


def test_no_rows_give_zero_that_reaches_every_weight() -> None:
    inputs = _inputs() | {"target_ids": torch.zeros(0, dtype=torch.int64)}
    inputs["hidden"] = torch.zeros(0, HIDDEN, requires_grad=True)
    for head in (linear_loss_sum, linear_losses):
        inputs["weight"].grad = None
        loss = head(**inputs, transform=LogitTransform())
        loss.sum().backward()
        assert loss.sum() == 0 and inputs["weight"].grad is not None and not inputs["weight"].grad.any()


def test_only_what_is_wanted_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrix products: one without gradients, one more with a frozen head, two more with a trained one. Several blocks of
    logits are computed again; a single one is not.
    """

    def products(*, frozen: bool, grad: bool) -> int:
        inputs = _inputs(frozen=frozen)
        with torch.set_grad_enabled(grad), Count() as count:
            loss = linear_loss_sum(**inputs, transform=LogitTransform())
            if grad:
                loss.backward()
        return count.operators["mm"] + count.operators["addmm_"]

    assert products(frozen=True, grad=False) == 1
    assert products(frozen=True, grad=True) == 2
    assert products(frozen=False, grad=True) == 3
    monkeypatch.setattr(linear_loss, "_NARROWEST", 1)
    monkeypatch.setattr(linear_loss, "BLOCK_BYTES", 4 * ROWS * VOCABULARY // 2)
    assert products(frozen=False, grad=False) == 2
    assert products(frozen=True, grad=True) == 6
    assert products(frozen=False, grad=True) == 8


def test_a_second_backward_pass_has_the_same_gradients(blocks: int) -> None:
    """The first one gives up the logits of a single block."""
    inputs = _inputs()
    loss = linear_loss_sum(**inputs, transform=LogitTransform())
    tensors = [inputs["hidden"], inputs["weight"]]
    first = torch.autograd.grad(loss, tensors, retain_graph=True)
    for one, other in zip(first, torch.autograd.grad(loss, tensors), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("head", [linear_loss_sum, linear_losses])
def test_asks_the_device_for_nothing(blocks: int, head: Any) -> None:
    """Tensors without values, forward and backward."""
    with FakeTensorMode() as mode:
        inputs = {name: None if x is None else mode.from_tensor(x.detach()) for name, x in _inputs().items()}
        weight = inputs["weight"].requires_grad_()
        loss = head(**inputs, transform=CAPPED).sum()
        (gradient,) = torch.autograd.grad(loss, weight)
    assert isinstance(gradient, FakeTensor) and gradient.shape == (VOCABULARY, HIDDEN)


def test_blocks_cover_the_vocabulary_and_fit_the_budget() -> None:
    blocks = column_blocks(8192, 128_256)
    assert [block.start for block in blocks] == [0, *(block.stop for block in blocks[:-1])]
    assert blocks[-1].stop == 128_256
    assert all(4 * 8192 * (block.stop - block.start) <= linear_loss.BLOCK_BYTES for block in blocks)
    assert column_blocks(0, 100) == column_blocks(3, 100) == [slice(0, 100)]
    assert len(column_blocks(1 << 40, 1000)) == 4  # not narrower than that
