"""Proves that LoRA added in place gives peft's outputs and gradients, computes them in fewer passes, and leaves to peft what
is more than two plain products.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint

from benchmarks.counting import Count
from benchmarks.gpu.operator_costs import Costs
from finetune.models.low_rank import InPlaceLinear, add_in_place

MODES = {  # name -> dtypes of base and adapter, autocast, tolerance
    "fp32": (torch.float32, torch.float32, False, 1e-6),
    "fp64": (torch.float64, torch.float64, False, 1e-12),
    "bf16 weights": (torch.bfloat16, torch.bfloat16, False, 2e-2),
    "autocast": (torch.float32, torch.float32, True, 2e-2),
    "autocast, bf16 base": (torch.bfloat16, torch.float32, True, 2e-2),
}


class Net(nn.Module):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(12, 20, bias=bias), nn.Linear(20, 6, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.two(torch.tanh(self.one(x)))
        return out


def adapted(
    base: torch.dtype = torch.float32, weights: torch.dtype = torch.float32, *, bias: bool = True, **more: Any
) -> Any:
    """peft's model with adapters that do something."""
    torch.manual_seed(0)
    config = LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": ["one", "two"], **more})
    model = get_peft_model(Net(bias), config)  # type: ignore[arg-type]
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1)
        weight.data = weight.data.to(weights if weight.requires_grad else base)
    return model


def result(
    model: Any, x: torch.Tensor, autocast: bool, call: Callable[..., Any] = lambda model, x: model(x)
) -> list[Any]:
    """[output, gradient of x, gradients of the adapter]."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = call(model, x)
    out.double().square().sum().backward()
    grads = [weight.grad for weight in model.parameters() if weight.requires_grad]
    model.zero_grad()
    return [out.detach(), x.grad, *grads]


@pytest.mark.parametrize(("mode", "bias"), itertools.product(MODES, (True, False)))
def test_outputs_and_gradients_are_peft_s(mode: str, bias: bool) -> None:
    base, weights, autocast, tolerance = MODES[mode]
    plain = adapted(base, weights, bias=bias)
    ours = copy.deepcopy(plain)
    assert add_in_place(ours) == 2
    x = torch.randn(3, 5, 12, dtype=torch.float32 if autocast else base)
    expected, found = result(plain, x, autocast), result(ours, x, autocast)
    assert len(found) == 6 and all(torch.any(tensor != 0) for tensor in found)
    for theirs, own in zip(expected, found, strict=True):
        assert own.dtype == theirs.dtype and own.shape == theirs.shape
        torch.testing.assert_close(own, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))


def test_in_half_precision_the_sum_is_nearer_to_float64_than_peft_s() -> None:
    plain = adapted(torch.bfloat16, torch.bfloat16)
    ours, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    add_in_place(ours)
    x = torch.randn(512, 12).bfloat16()
    expected = result(exact, x.double(), False)
    theirs, own = (
        [float((got.double() - right).norm()) for got, right in zip(result(model, x, False), expected, strict=True)]
        for model in (plain, ours)
    )
    assert own[0] < theirs[0] and own[1] < theirs[1]


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_give_the_same(reentrant: bool) -> None:
    plain = adapted()
    ours = copy.deepcopy(plain)
    add_in_place(ours)
    x = torch.randn(7, 12)
    again = result(ours, x, False, lambda model, x: checkpoint(model, x, use_reentrant=reentrant))
    for theirs, own in zip(result(plain, x, False), again, strict=True):
        torch.testing.assert_close(own, theirs)


@pytest.mark.parametrize("autocast", [False, True])
def test_layers_that_are_compiled_give_the_same_by_one_graph(autocast: bool) -> None:
    plain = adapted()
    ours, graphs = copy.deepcopy(plain), []
    add_in_place(ours)

    def count(graph: Any, examples: Any) -> Any:
        graphs.append(graph)
        return aot_eager(graph, examples)

    torch._dynamo.reset()
    aot_eager = torch._dynamo.lookup_backend("aot_eager")
    compiled = torch.compile(Net.forward, dynamic=True, backend=count, fullgraph=True)
    inputs = [torch.randn(2, length, 12) for length in (7, 5)]
    expected = [result(ours, x, autocast) for x in inputs]
    with torch._dynamo.config.patch(specialize_float=True):  # as compiled.py sets it
        found = [result(ours, x, autocast, lambda model, x: compiled(model.base_model.model, x)) for x in inputs]
    for theirs, own in zip(itertools.chain(*expected), itertools.chain(*found), strict=True):
        torch.testing.assert_close(own, theirs)
    assert len(graphs) == 1


def test_the_last_product_of_a_checkpointed_layer_is_computed_once() -> None:
    """Of a layer as language models have it: what it saves last is saved before its large product."""
    ours = adapted(bias=False)
    add_in_place(ours)
    flops = []
    for again in (False, True):
        x = torch.randn(64, 12, requires_grad=True)
        with Costs() as costs:
            (checkpoint(ours, x, use_reentrant=False) if again else ours(x)).sum().backward()
        flops.append(sum(line.flops for line in costs.lines.values()))
    small = (12 * 4 + 4 * 20) + 20 * 4  # of the first layer; x A^T of the second
    assert flops[1] - flops[0] == 2 * 64 * (12 * 20 + small)


def test_an_input_without_gradient_costs_none() -> None:
    ours = adapted()
    add_in_place(ours)
    layer = ours.base_model.model.one
    with Count() as count:
        layer(torch.randn(5, 12)).sum().backward()
    products = count.operators["mm"], count.operators["addmm"], count.operators["addmm_"]
    assert products == (2, 1, 3)  # (g B)^T x and g^T h; h B^T + bias; x A^T, x W^T and g B
    assert layer.lora_A["default"].weight.grad is not None


def test_fewer_operators_and_bytes_than_peft_s() -> None:
    """A layer whose input has a gradient, on 256 rows, of width 128."""
    config = LoraConfig(r=4, target_modules=["0"])
    torch.manual_seed(0)
    plain: Any = get_peft_model(nn.Sequential(nn.Linear(128, 128)), config)  # type: ignore[arg-type]
    ours = copy.deepcopy(plain)
    add_in_place(ours)
    counts = []
    for model in (plain, ours):
        x = torch.randn(256, 128, requires_grad=True)
        with Count() as count:
            model(x).backward(torch.ones(256, 128))
        counts.append(count)
    theirs, own = counts
    assert own.operators.total() < theirs.operators.total()
    assert theirs.operators["mul"] == 2 and own.operators["mul"] == 0
    activation = 256 * 128 * 4
    assert theirs.moved - own.moved >= 7 * activation


def _merged(model: Any) -> None:
    model.merge_adapter()


def _two(model: Any) -> None:
    model.add_adapter("other", LoraConfig(r=2, target_modules=["one", "two"], init_lora_weights=False))
    model.base_model.set_adapter(["default", "other"])


def _hooked(model: Any) -> None:
    for layer in model.modules():
        if type(layer) is nn.Linear:
            layer.register_forward_hook(lambda module, args, out: out * 2)


CASES: dict[str, tuple[dict[str, Any], Callable[[Any], Any]]] = {
    "dora": ({"use_dora": True}, lambda model: None),
    "lora_bias": ({"lora_bias": True}, lambda model: None),
    "merged": ({}, _merged),
    "two adapters": ({}, _two),
    "hooks on what is inside": ({}, _hooked),
    "disabled": ({}, lambda model: model.base_model.disable_adapter_layers()),
    "dropout": ({"lora_dropout": 0.5}, lambda model: None),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_more_than_two_products_is_left_to_peft(case: str) -> None:
    options, change = CASES[case]
    plain = adapted(**options)
    ours = copy.deepcopy(plain)
    add_in_place(ours)
    outputs = []
    for model in (plain, ours):
        torch.manual_seed(1)
        change(model)
        torch.manual_seed(2)
        outputs.append(model(torch.randn(9, 12, generator=torch.Generator().manual_seed(3))))
    assert torch.equal(*outputs)


def test_dropout_is_none_in_evaluation_and_layers_that_are_not_linear_stay() -> None:
    ours = adapted(lora_dropout=0.5).eval()
    add_in_place(ours)
    layer = ours.base_model.model.one
    assert type(layer) is InPlaceLinear and layer._plain_adapter() == "default"
    assert ours.train() is ours and layer._plain_adapter() is None
    embedding: Any = get_peft_model(nn.Sequential(nn.Embedding(5, 4)), LoraConfig(target_modules=["0"]))  # type: ignore[arg-type]
    assert add_in_place(embedding) == 0


def test_merging_is_peft_s() -> None:
    plain = adapted()
    ours = copy.deepcopy(plain)
    add_in_place(ours)
    x = torch.randn(4, 12)
    with torch.inference_mode():
        assert torch.equal(plain.merge_and_unload()(x), ours.merge_and_unload()(x))
