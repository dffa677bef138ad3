"""Tests that the loss head gives the same where kernels work on its blocks in place: with a stand-in for them by their rules,
and with the kernels themselves under triton's interpreter, where triton is installed (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.counting import Count
from finetune.models import linear_loss, summed_loss
from finetune.models.linear_loss import LogitTransform, linear_loss_sum, linear_losses, sum_losses
from finetune.models.losses import IGNORE

ROWS, HIDDEN, VOCABULARY = 37, 16, 317


def _check(logits: Tensor, column: Tensor, *values: Tensor, dtype: torch.dtype) -> None:
    assert logits.dtype in (torch.bfloat16, torch.float16) and logits.stride(1) == 1
    assert column.dtype == torch.int64
    for value in (column, *values):
        assert value.shape == logits.shape[:1] and value.is_contiguous()
    assert all(value.dtype == dtype for value in values)


def add_to_normalizers(logits: Tensor, column: Tensor, normalizer: Tensor, at_target: Tensor) -> None:
    _check(logits, column, normalizer, at_target, dtype=torch.float64)
    normalizer.copy_(torch.logaddexp(normalizer, logits.double().logsumexp(1)))
    inside = (column >= 0) & (column < logits.shape[1])
    held = logits.double().gather(1, column.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
    at_target.copy_(torch.where(inside, held, at_target))


def turn_into_gradients(logits: Tensor, column: Tensor, normalizer: Tensor, at_target: Tensor, factor: Tensor) -> None:
    _check(logits, column, normalizer, at_target, factor, dtype=torch.float32)
    gradient = (logits.float() - normalizer[:, None]).exp()
    inside = torch.arange(logits.shape[1]) == column[:, None]
    logits.copy_(torch.where(inside, at_target[:, None], gradient) * factor[:, None])


def turn_into_loss_gradients(logits: Tensor, target_ids: Tensor, losses: Tensor) -> None:
    _check(logits, target_ids, losses, dtype=torch.float32)
    wide = logits.detach().float().requires_grad_()
    with torch.enable_grad():
        found = torch.nn.functional.cross_entropy(wide, target_ids, ignore_index=IGNORE, reduction="none")
        (gradient,) = torch.autograd.grad(found.sum(), wide)
    losses.copy_(found)
    logits.copy_(gradient)


def multiply_in_place(tensor: Tensor, factor: Tensor) -> None:
    assert tensor.is_contiguous() and factor.shape == () and factor.dtype == torch.float32
    tensor.copy_(tensor.float() * factor)


def _interpreted() -> Any:
    if importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs triton and TRITON_INTERPRET=1")
    found = importlib.import_module("finetune.models.softmax_kernels")
    return SimpleNamespace(**vars(found), rounding=6e-3)  # the interpreter cuts bits off where a GPU rounds


@pytest.fixture(params=["stand-in", "interpreted"])
def kernels(request: pytest.FixtureRequest) -> Any:
    if request.param == "interpreted":
        return _interpreted()
    return SimpleNamespace(
        rounding=2e-3,
        SUPPORTED=(torch.bfloat16, torch.float16),
        add_to_normalizers=add_to_normalizers,
        turn_into_gradients=turn_into_gradients,
        turn_into_loss_gradients=turn_into_loss_gradients,
        multiply_in_place=multiply_in_place,
    )


def _inputs(dtype: torch.dtype, *, frozen: bool = False, bias: bool = False) -> dict[str, Any]:
    torch.manual_seed(3)
    ids = torch.randint(VOCABULARY, (ROWS,))
    ids[[2, 7]] = IGNORE
    return {
        "hidden": torch.randn(ROWS, HIDDEN, dtype=dtype).requires_grad_(),
        "weight": torch.randn(VOCABULARY, HIDDEN, dtype=dtype).requires_grad_(not frozen),
        "bias": torch.randn(VOCABULARY, dtype=dtype).requires_grad_() if bias else None,
        "target_ids": ids,
    }


def _found(inputs: dict[str, Any], factor: Any, *, rows: bool = False, **options: Any) -> list[Tensor]:
    losses = linear_losses(**inputs, transform=LogitTransform(), **options)
    ((losses if rows else sum_losses(losses)) * factor).sum().backward()
    tensors = (inputs[name] for name in ("hidden", "weight", "bias"))
    return [losses.detach(), *(tensor.grad for tensor in tensors if tensor is not None and tensor.grad is not None)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [{}, {"frozen": True}, {"bias": True}], ids=str)
@pytest.mark.parametrize("rows", [False, True], ids=["sum", "rows"])
def test_equals_the_operators_of_torch(
    dtype: torch.dtype, kind: dict[str, bool], rows: bool, kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    factor: Any = torch.linspace(-2.0, 3.0, ROWS) if rows else 0.37
    monkeypatch.setattr(linear_loss, "_NARROWEST", 1)
    monkeypatch.setattr(linear_loss, "BLOCK_BYTES", 4 * ROWS * 64)
    wanted = _found(_inputs(dtype, **kind), factor, rows=rows)
    calls = _use(kernels, monkeypatch)
    found = _found(_inputs(dtype, **kind), factor, rows=rows)
    assert [calls[name] for name in ("add_to_normalizers", "turn_into_gradients", "multiply_in_place")] == [5, 5, 0]
    assert len(found) == len(wanted) and found[0][2] == found[0][7] == 0
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-6, atol=1e-6)
    for mine, other in zip(found[1:], wanted[1:], strict=True):
        assert mine.dtype == dtype
        assert (mine - other).double().norm() <= kernels.rounding * other.double().norm()


def _use(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Blocks of 64 columns, as on a GPU; how often each kernel is called."""
    names = ("add_to_normalizers", "turn_into_gradients", "turn_into_loss_gradients", "multiply_in_place")
    calls = dict.fromkeys(names, 0)

    def counted(name: str) -> Any:
        def call(*arguments: Any) -> None:
            calls[name] += 1
            getattr(kernels, name)(*arguments)

        return call

    watched = SimpleNamespace(SUPPORTED=kernels.SUPPORTED, **{name: counted(name) for name in calls})
    monkeypatch.setattr(linear_loss, "_is_on_gpu", lambda tensor: True)
    monkeypatch.setattr(linear_loss, "_load_kernels", lambda: watched)
    monkeypatch.setattr(linear_loss, "_NARROWEST", 1)
    monkeypatch.setattr(linear_loss, "KERNEL_BLOCK_BYTES", 2 * ROWS * 64)
    return calls


@pytest.mark.parametrize("kind", [{}, {"frozen": True}, {"bias": True}], ids=str)
@pytest.mark.parametrize("chunk", [ROWS, 10])
def test_the_sum_has_its_gradients_from_the_forward_pass(
    chunk: int, kind: dict[str, bool], kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three matrix products a chunk, two with a frozen weight, and the factor of the backward pass in float32."""
    wanted = _found(_inputs(torch.bfloat16, **kind), 1.0039)
    calls = _use(kernels, monkeypatch)
    monkeypatch.setattr(summed_loss, "_FEWEST", 1)
    monkeypatch.setattr(summed_loss, "CHUNK_BYTES", 2 * VOCABULARY * chunk)
    inputs = _inputs(torch.bfloat16, **kind)
    with Count() as count:
        loss = linear_loss_sum(**inputs, transform=LogitTransform()) * 1.0039
        loss.backward()
    chunks = -(-ROWS // chunk)
    assert calls["turn_into_loss_gradients"] == chunks and calls["add_to_normalizers"] == 0
    products = sum(count.operators[name] for name in ("mm", "addmm", "addmm_"))
    assert products == chunks * (2 if "frozen" in kind else 3)
    assert loss.item() == pytest.approx(wanted[0].sum().item() * 1.0039, rel=1e-5)
    found = [tensor.grad for tensor in (inputs["hidden"], inputs["weight"], inputs["bias"]) if tensor is not None]
    for mine, other in zip((one for one in found if one is not None), wanted[1:], strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine - other).double().norm() <= 3 * kernels.rounding * other.double().norm()
    assert not found[0][[2, 7]].any()


def test_the_first_chunk_writes_the_weight_s_gradient_and_no_rows_give_zeros(
    kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is filled with zeros before a product, or added to what was never written."""
    _use(kernels, monkeypatch)
    monkeypatch.setattr(summed_loss, "_FEWEST", 1)
    monkeypatch.setattr(summed_loss, "CHUNK_BYTES", 2 * VOCABULARY * 10)
    inputs = _inputs(torch.bfloat16)
    weight = inputs["weight"]
    with Count() as count, monkeypatch.context() as patch:
        patch.setattr(torch, "empty_like", lambda tensor: torch.full_like(tensor, torch.nan))
        loss = linear_loss_sum(**inputs, transform=LogitTransform())
    loss.backward()
    assert count.operators["zeros_like"] == count.operators["zero_"] == 0
    assert count.operators["addmm_"] == 4 and torch.isfinite(weight.grad).all() and weight.grad.any()
    weight.grad = None
    none = {**inputs, "hidden": inputs["hidden"][:0], "target_ids": inputs["target_ids"][:0]}
    linear_loss_sum(**none, transform=LogitTransform()).backward()
    assert weight.grad.shape == weight.shape and not weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_dtypes_compute_logits_again(dtype: torch.dtype, kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _use(kernels, monkeypatch)
    linear_loss_sum(**_inputs(dtype), transform=LogitTransform()).backward()
    assert calls["turn_into_loss_gradients"] == 0


def test_a_row_that_is_not_finite_is_seen(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = _inputs(torch.bfloat16)
    with torch.no_grad():
        inputs["hidden"][5, 0] = float("nan")
    _use(kernels, monkeypatch)
    losses = linear_losses(**inputs, transform=LogitTransform())
    assert losses.isnan().nonzero().flatten().tolist() == [5]


def test_what_the_kernels_do_not_compute_goes_by_operators(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _use(kernels, monkeypatch)
    linear_losses(**_inputs(torch.bfloat16), transform=LogitTransform(), label_smoothing=0.1)
    linear_losses(**_inputs(torch.float32), transform=LogitTransform())
    linear_losses(**_inputs(torch.bfloat16), transform=LogitTransform(scale=0.5))
    assert not any(calls.values())


class Aligned(TorchDispatchMode):
    """Sees to it that each matrix of a product begins its rows, or columns, at multiples of 16 bytes, as tensor cores want."""

    products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("mm", "addmm", "addmm_"):
            self.products += 1
            for tensor in [*args, *(kwargs or {}).values()]:
                if isinstance(tensor, Tensor) and tensor.dim() == 2:
                    assert sorted(tensor.stride())[0] == 1 and max(tensor.stride()) % 8 == 0, (func, tensor.stride())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", [{}, {"frozen": True}, {"bias": True}], ids=str)
@pytest.mark.parametrize("rows", [False, True], ids=["sum", "rows"])
def test_products_have_aligned_matrices_whatever_the_vocabulary(
    rows: bool, kind: dict[str, bool], kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _use(kernels, monkeypatch)
    monkeypatch.setattr(linear_loss, "KERNEL_BLOCK_BYTES", 2 * ROWS * 90)
    inputs = _inputs(torch.bfloat16, **kind)
    with Aligned() as aligned:
        (linear_losses if rows else linear_loss_sum)(**inputs, transform=LogitTransform()).sum().backward()
    logits, others = 1 + rows, 1 if "frozen" in kind else 2
    assert aligned.products == (logits + others) * (3 if rows else 1)  # three blocks, or one chunk


def test_targets_may_be_a_column(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = _inputs(torch.bfloat16)
    wanted = linear_loss_sum(**inputs, transform=LogitTransform())
    _use(kernels, monkeypatch)
    inputs["target_ids"] = torch.stack((inputs["target_ids"], torch.zeros(ROWS, dtype=torch.int64)), dim=1)[:, 0]
    found = [linear_loss_sum(**inputs, transform=LogitTransform())]
    found.append(linear_losses(**inputs, transform=LogitTransform()).sum())
    assert [loss.item() for loss in found] == pytest.approx([wanted.item()] * 2, rel=1e-5)


@pytest.mark.parametrize("vocabulary", [50_257, 49_155])
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_float32_weights_under_autocast_with_odd_vocabularies(
    vocabulary: int, frozen: bool, kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the blocks that 5,000 rows have."""
    torch.manual_seed(3)
    tensors = [torch.randn(ROWS, HIDDEN), torch.randn(vocabulary, HIDDEN)]
    ids = torch.randint(vocabulary, (ROWS,))
    ids[0], ids[1], ids[2] = vocabulary - 1, 0, IGNORE

    def found() -> tuple[Tensor, list[Tensor]]:
        hidden, weight = tensors[0].clone().requires_grad_(), tensors[1].clone().requires_grad_(not frozen)
        with torch.autocast("cpu", torch.bfloat16):
            loss = linear_loss_sum(hidden, weight, None, ids, LogitTransform())
        loss.backward()
        return loss.detach(), [one.grad for one in (hidden, weight) if one.grad is not None]

    exact = [one.bfloat16().double().requires_grad_() for one in tensors]
    torch.nn.functional.cross_entropy(exact[0] @ exact[1].T, ids, reduction="sum").backward()
    loss, by_operators = found()
    budget = linear_loss.KERNEL_BLOCK_BYTES * ROWS // 5000
    calls = _use(kernels, monkeypatch)
    monkeypatch.setattr(linear_loss, "KERNEL_BLOCK_BYTES", budget)
    mine, gradients = found()
    blocks = linear_loss.column_blocks(ROWS, vocabulary, kernels=True)
    assert len(blocks) == calls["add_to_normalizers"] == calls["turn_into_gradients"] == 4
    assert blocks[-1].stop == vocabulary and all(block.start % summed_loss.ALIGNED == 0 for block in blocks)
    torch.testing.assert_close(mine, loss, rtol=1e-6, atol=0.0)
    assert len(gradients) == 2 - frozen
    for one, other, right in zip(gradients, by_operators, exact, strict=False):
        assert one.dtype == torch.float32 and right.grad is not None
        assert (one - right.grad).norm() <= 1.05 * (other - right.grad).norm() + kernels.rounding * right.grad.norm()
