"""Proves that linear layers computed by oneDNN give what float64 gives, to the accuracy of torch's own way, with the same
bytes on any number of threads; and that training, adapters, hooks, tied weights and other machines are left alone.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from packaging.version import Version
from peft import LoraConfig, get_peft_model
from torch import nn

from finetune.models import onednn_linear
from finetune.models.onednn_linear import is_plain_linear, multiply, use_onednn

pytestmark = pytest.mark.skipif(onednn_linear._operator() is None, reason="this build of torch has no oneDNN")

WIDE = 128  # 64 rows of such a layer are as small a product as is given to oneDNN


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of inputs that oneDNN was given, on a machine that is known to gain."""
    found: list[tuple[int, ...]] = []
    operator = onednn_linear._operator()

    def note(input: torch.Tensor, *rest: Any) -> Any:
        found.append(tuple(input.shape))
        return operator(input, *rest)

    monkeypatch.setattr(onednn_linear, "is_faster_here", lambda: True)
    monkeypatch.setattr(onednn_linear, "_operator", lambda: note)
    return found


def layer(inputs: int = WIDE, outputs: int = WIDE, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=bias).requires_grad_(False).eval()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("inputs", "outputs", "shape"), [(384, 256, (40,)), (2048, 96, (3, 17)), (100, 333, (2, 4, 16))]
)
def test_answers_are_as_close_to_float64_as_torch_s_own(
    calls: list[tuple[int, ...]], inputs: int, outputs: int, shape: tuple[int, ...], bias: bool
) -> None:
    linear = layer(inputs, outputs, bias=bias)
    rows = torch.randn(*shape, inputs)
    exact = copy.deepcopy(linear).double()(rows.double())
    plain = linear(rows)
    assert use_onednn(linear) == 1
    with torch.inference_mode():
        ours = linear(rows)
    assert calls == [(*shape, inputs)] and ours.shape == exact.shape
    assert (ours - exact).abs().mean() < 4 * (plain - exact).abs().mean() < 1e-5


def test_inputs_and_weights_may_have_any_layout(calls: list[tuple[int, ...]]) -> None:
    linear = layer()
    linear.weight = nn.Parameter(linear.weight.detach().t().contiguous().t(), requires_grad=False)
    rows = torch.randn(16, 2 * WIDE, 5)[:, ::2].transpose(1, 2)
    expected = linear(rows)
    use_onednn(linear)
    with torch.no_grad():
        torch.testing.assert_close(linear(rows), expected)
    assert len(calls) == 1


@pytest.mark.parametrize(("rows", "inner", "columns"), [(300, 64, 96), (96, 300, 64), (64, 300, 96)])
def test_products_may_be_of_transposed_matrices(
    calls: list[tuple[int, ...]], rows: int, inner: int, columns: int
) -> None:
    torch.manual_seed(0)
    left, right = torch.randn(rows, inner), torch.randn(inner, columns)
    exact = left.double() @ right.double()
    for one in (left, left.t().contiguous().t()):
        for other in (right, right.t().contiguous().t()):
            torch.testing.assert_close(multiply(one, other).double(), exact, rtol=1e-5, atol=1e-4)
    assert len(calls) == 4
    multiply(left.double(), right.double())
    multiply(left[:2], right)
    assert len(calls) == 4  # neither float64 nor a small product


def test_bytes_do_not_depend_on_the_number_of_threads(calls: list[tuple[int, ...]]) -> None:
    linear, rows = layer(768, WIDE), torch.randn(65, 768)
    use_onednn(linear)
    before, results = torch.get_num_threads(), []
    try:
        with torch.inference_mode():
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                results.append(linear(rows))
    finally:
        torch.set_num_threads(before)
    assert len(calls) == 3
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.skipif(
    Version(torch.__version__) < Version("2.13"), reason="older oneDNN (3.10 in torch 2.11) sums in another order"
)
def test_bytes_do_not_depend_on_other_rows(calls: list[tuple[int, ...]]) -> None:
    linear, rows = layer(768, WIDE), torch.randn(65, 768)
    use_onednn(linear)
    with torch.inference_mode():
        parts = [linear(rows[:30]), linear(rows[30:])]
        assert torch.equal(torch.cat(parts), linear(rows))
    assert len(calls) == 3


def test_what_onednn_is_not_for_goes_torch_s_own_way(calls: list[tuple[int, ...]]) -> None:
    linear, rows = layer(), torch.randn(64, WIDE)
    use_onednn(linear)
    linear(rows)  # under grad mode, where an operator without a gradient would be silent
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert linear(rows).dtype == torch.bfloat16
        linear(rows[:63])  # too small to gain
        assert linear(rows[:0]).shape == (0, WIDE)
        linear.bfloat16()(rows.bfloat16())
        with pytest.raises(RuntimeError, match="dtype"):
            linear(rows)
        assert calls == []
        linear.float()(rows)
        assert calls == [(64, WIDE)]


def test_a_gradient_still_flows(calls: list[tuple[int, ...]]) -> None:
    linear, rows = layer(), torch.randn(64, WIDE, requires_grad=True)
    use_onednn(linear)
    linear(rows).sum().backward()
    torch.testing.assert_close(rows.grad, linear.weight.sum(0).expand(64, -1))


class Tied(nn.Module):
    """Embeddings that are also the head, a hook, a layer of another class, and one whose forward pass was replaced."""

    class Other(nn.Linear):
        pass

    def __init__(self) -> None:
        super().__init__()
        self.embeddings, self.head = nn.Embedding(WIDE, WIDE), layer(bias=False)
        self.head.weight = self.embeddings.weight
        self.hooked, self.other, self.patched = layer(), self.Other(WIDE, WIDE), layer()
        self.hooked.register_forward_hook(lambda module, inputs, output: output + 1)
        self.patched.forward = lambda rows: rows  # type: ignore[method-assign]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.patched(self.other(self.hooked(self.embeddings(ids)))))
        return result


def test_tied_weights_hooks_and_foreign_layers_stay(calls: list[tuple[int, ...]]) -> None:
    model = Tied().requires_grad_(False).eval()
    ids = torch.arange(WIDE)
    expected, keys, weights = model(ids), list(model.state_dict()), [id(weight) for weight in model.parameters()]
    assert use_onednn(model) == 2
    assert model.head.weight is model.embeddings.weight
    assert (list(model.state_dict()), [id(weight) for weight in model.parameters()]) == (keys, weights)
    with torch.inference_mode():
        torch.testing.assert_close(model(ids), expected)
        assert len(calls) == 2
        model.embeddings.weight.zero_()  # no copy of it is kept
        assert not model.head(torch.ones(64, WIDE)).any()
    assert [is_plain_linear(part) for part in (model.hooked, model.other, model.patched)] == [True, False, False]


def test_an_adapter_around_a_layer_counts(calls: list[tuple[int, ...]]) -> None:
    model = nn.Sequential(layer(), nn.Tanh(), layer())
    adapted = get_peft_model(model, LoraConfig(r=64, target_modules=["0"], init_lora_weights=False)).eval()
    rows = torch.randn(128, WIDE)
    expected = adapted(rows)
    assert use_onednn(adapted) == 4
    with torch.inference_mode():
        torch.testing.assert_close(adapted(rows), expected)
        assert len(calls) == 4  # both layers, and both products of the adapter
        with adapted.disable_adapter():
            assert not torch.allclose(adapted(rows), expected)


@pytest.mark.parametrize(
    ("info", "faster"),
    [
        ("processor\t: 0\nvendor_id\t: AuthenticAMD\n", True),
        ("vendor_id\t: GenuineIntel\n", False),  # MKL's own
        ("processor\t: 0\nCPU implementer\t: 0x41\n", False),  # it does not say
        (None, False),  # not Linux
    ],
)
def test_only_machines_that_are_known_to_gain_are_changed(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, info: str | None, faster: bool
) -> None:
    path = tmp_path / "cpuinfo"
    if info is not None:
        path.write_text(info)
    monkeypatch.setattr(onednn_linear, "_CPU_INFO", path)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(onednn_linear, "is_faster_here", onednn_linear.is_faster_here.__wrapped__)
    assert onednn_linear.is_faster_here() is faster
    assert use_onednn(layer()) == int(faster)
    monkeypatch.setattr(onednn_linear, "_operator", lambda: None)
    assert use_onednn(layer()) == 0
