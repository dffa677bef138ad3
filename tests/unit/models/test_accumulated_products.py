"""Proves that linear layers which add up gradients in their matrix products give autograd's numbers, rounded less, in fewer
passes, and leave to autograd what somebody waits for.
"""

from __future__ import annotations

import copy
import pickle
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint

from benchmarks.counting import Count
from benchmarks.gpu.operator_costs import Costs
from finetune.models.accumulated_products import AccumulatingLinear, accumulating, convert_linears
from finetune.models.gated import recompute_gates
from finetune.models.light_checkpointing import use_light_checkpointing
from finetune.models.low_rank import InPlaceLinear, add_in_place
from tests.unit.models.test_light_checkpointing import Live

MICRO_BATCHES = 6


def pair(dtype: torch.dtype = torch.bfloat16, bias: bool = True) -> tuple[nn.Module, nn.Module]:
    """The same layers, plain and converted."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(12, 20, bias=bias), nn.Tanh(), nn.Linear(20, 6, bias=bias)).to(dtype)
    ours = copy.deepcopy(plain)
    assert convert_linears(ours) == 2
    return plain, ours


def train(model: nn.Module, *, within: Any = nullcontext, again: bool = False, count: int = MICRO_BATCHES) -> list[Any]:
    """Gradients of weights after some micro-batches, and that of the last input."""
    dtype = next(model.parameters()).dtype
    draw = torch.Generator().manual_seed(1)
    for _ in range(count):
        x = torch.randn(3, 8, 12, generator=draw).bfloat16().to(dtype).requires_grad_()
        with within():
            out = checkpoint(model, x, use_reentrant=False) if again else model(x)
            out.square().sum().backward()
    return [*(weight.grad for weight in model.parameters()), x.grad]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outside_of_it_and_in_float32_gradients_are_the_same_to_the_last_bit(dtype: torch.dtype, bias: bool) -> None:
    plain, ours = pair(dtype, bias)
    expected = train(plain)
    for within in (nullcontext, accumulating) if dtype == torch.float32 else (nullcontext,):
        ours.zero_grad()
        for mine, other in zip(train(ours, within=within), expected, strict=True):
            assert torch.equal(mine, other)


@pytest.mark.parametrize("again", [False, True])
def test_the_sum_is_nearer_to_float64_than_autograd_s(again: bool) -> None:
    plain, ours = pair()
    exact = train(copy.deepcopy(plain).double())
    theirs, mine = train(plain), train(ours, within=accumulating, again=again)
    for weight in (0, 2):
        errors = [float((found[weight].double() - exact[weight]).norm()) for found in (mine, theirs)]
        assert errors[0] < errors[1] < 0.02 * float(exact[weight].norm())
    for other in (1, 3, 4):  # biases and the input
        assert torch.equal(mine[other], theirs[other])


def test_a_later_micro_batch_writes_no_gradients_of_weights_apart() -> None:
    counts = []
    for model, within in zip(pair(bias=False), (nullcontext, accumulating), strict=True):
        train(model, count=1)
        with Count() as count:
            train(model, within=within, count=1)
        counts.append(count)
    plain, ours = counts
    assert plain.operators["add_"] - ours.operators["add_"] == 2
    assert ours.operators["addmm_"] == 2 and ours.operators["mm"] == plain.operators["mm"] - 2
    weights = 2 * (12 * 20 + 20 * 6)
    assert plain.moved - ours.moved == 2 * weights  # autograd's: 1 + 3 passes; ours: 2


def test_what_watches_a_gradient_gets_it() -> None:
    plain, ours = pair()
    seen: list[torch.Tensor] = []
    for model in (plain, ours):
        model[0].weight.register_hook(lambda gradient: seen.append(gradient.clone()))
        model[2].weight.register_post_accumulate_grad_hook(lambda weight: seen.append(weight.grad.clone()))
    expected, found = train(plain), train(ours, within=accumulating)
    assert len(seen) == 4 * MICRO_BATCHES
    assert all(torch.equal(*both) for both in zip(expected, found, strict=True))


def test_gradients_that_are_results_are_given() -> None:
    """As of passes that are not trained on."""
    plain, ours = pair()
    x = torch.randn(4, 12).bfloat16()
    for model in (plain, ours):
        train(model, count=1)
    found = [torch.autograd.grad(model(x).sum(), list(model.parameters())) for model in (plain, ours)]
    assert all(torch.equal(*both) for both in zip(*found, strict=True))


def test_the_last_product_of_a_checkpointed_layer_is_computed_once() -> None:
    flops = []
    for model in pair(bias=False):
        with Costs() as costs:
            train(model, again=True, count=1)
        flops.append(sum(line.flops for line in costs.lines.values()))
    assert flops[0] == flops[1] == 2 * 24 * (4 * 12 * 20 + 3 * 20 * 6)


def test_heads_of_language_models_frozen_layers_and_other_kinds_stay() -> None:
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
    )  # fmt: skip
    model: Any = transformers.LlamaForCausalLM(config)
    model.model.layers[0].self_attn.q_proj.requires_grad_(False)
    assert convert_linears(model) == 2 * 7 - 1
    assert type(model.lm_head) is nn.Linear and type(model.model.layers[0].self_attn.q_proj) is nn.Linear
    assert type(model.model.layers[1].mlp.up_proj) is AccumulatingLinear
    assert convert_linears(model) == 0


def test_an_adapter_is_still_added_in_place() -> None:
    model: Any = get_peft_model(nn.Sequential(nn.Linear(12, 20)), LoraConfig(r=4, target_modules=["0"]))  # type: ignore[arg-type]
    add_in_place(model)
    assert convert_linears(model) == 0
    assert next(layer for layer in model.modules() if type(layer) is InPlaceLinear)._plain_adapter() == "default"


def small_llama(checkpointing: str, gates: bool, *, converted: bool) -> Any:
    """In the order of training_layers.py. gates: the forward pass of gated layers is replaced on each of them."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        tie_word_embeddings=True,
    )  # fmt: skip
    model: Any = transformers.LlamaForCausalLM(config).bfloat16().train()
    if checkpointing == "whole":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if gates:
        assert recompute_gates(model) == 2
    if converted:
        assert convert_linears(model) == 14
    if checkpointing == "light":
        assert use_light_checkpointing(model).outputs["gated products"] == 2
    return model


@pytest.mark.parametrize("checkpointing", ["", "light", "whole"])
@pytest.mark.parametrize("gates", [False, True], ids=["plain", "gates again"])
def test_a_llama_holds_no_more_and_has_the_gradients_of_plain_layers(checkpointing: str, gates: bool) -> None:
    """Two micro-batches: of the first one to the last bit."""
    draw = torch.Generator().manual_seed(2)
    batches = [torch.randint(50, (8, 24), generator=draw) for _ in range(2)]
    first, gradients, held, peaks = [], [], [], []
    for converted in (False, True):
        model = small_llama(checkpointing, gates, converted=converted)
        for ids in batches:
            with Live() as bytes_of, accumulating():
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss
                held.append(bytes_of.live)
                loss.backward()
                peaks.append(bytes_of.peak)
            del loss
            if ids is batches[0]:
                first.append([weight.grad.clone() for weight in model.parameters()])
        gradients.append([weight.grad for weight in model.parameters()])
    assert all(torch.equal(mine, other) for mine, other in zip(*first, strict=True))
    assert held[2] == held[0] and held[3] == held[1]
    assert peaks[2] <= peaks[0] + 64 and peaks[3] <= peaks[1] + 64
    for mine, other in zip(*gradients, strict=True):
        assert (mine - other).double().norm() <= 2**-7 * other.double().norm()


@pytest.mark.parametrize("again", [False, True], ids=["", "again"])
@pytest.mark.parametrize("kind", ["two modules", "one module twice"])
def test_a_weight_that_is_used_twice_is_left_to_autograd(kind: str, again: bool) -> None:
    """Which adds both products before it rounds the sum over micro-batches."""
    torch.manual_seed(0)
    first, second = (nn.Linear(12, 12, bias=False, dtype=torch.bfloat16) for _ in range(2))
    second.weight = first.weight
    plain = nn.Sequential(first, nn.Tanh(), second if kind == "two modules" else first)
    ours = copy.deepcopy(plain)
    assert ours[2].weight is ours[0].weight and convert_linears(ours) == len({*plain} - {plain[1]})
    theirs, mine = train(plain, again=again), train(ours, within=accumulating, again=again)
    assert all(torch.equal(*both) for both in zip(mine, theirs, strict=True))


def test_a_converted_model_is_copied_pickled_and_exported_as_a_plain_one() -> None:
    plain, ours = pair()
    x = torch.randn(4, 12).bfloat16()
    again = pickle.loads(pickle.dumps(copy.deepcopy(ours)))
    again(x).sum().backward()
    assert ours[0].weight.grad is None and again[0].weight.grad is not None
    assert list(again.state_dict()) == list(plain.state_dict()) and repr(plain).count("Linear(") == 2
    with torch.no_grad():
        assert again(x).grad_fn is None and torch.equal(again(x), plain(x))
