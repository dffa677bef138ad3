"""Proves that weights drawn by name depend on the seed and the name alone, and have the distributions of the constructor.

On the CPU: a GPU runs the same code with a generator of its own (tests/gpu).
"""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from finetune.errors import UserError
from finetune.models.config import load_config
from finetune.models.load import load_model
from finetune.models.random_weights import build_by_name
from finetune.recipe.model import ModelSection

CPU = torch.device("cpu")
SMALL = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (AutoModelForCausalLM, {**SMALL, "num_key_value_heads": 2, "vocab_size": 300}),
    "gpt2": (AutoModelForCausalLM, {"n_embd": 48, "n_layer": 2, "n_head": 4, "vocab_size": 300}),
    "bert": (AutoModelForSequenceClassification, {**SMALL, "vocab_size": 300, "num_labels": 3}),
    "t5": (
        AutoModelForSeq2SeqLM,
        {"d_model": 48, "d_ff": 96, "num_layers": 2, "num_heads": 4, "d_kv": 12, "vocab_size": 300},
    ),
    "vit": (AutoModelForImageClassification, {**SMALL, "image_size": 16, "patch_size": 4}),
    "resnet": (AutoModelForImageClassification, {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1]}),
}


def build(kind: str, device: str, seed: int = 3, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    auto_class, shape = KINDS[kind]
    model = ModelSection(source=kind, init="config", init_device=device, config={**shape, **changes})  # type: ignore[arg-type]
    return load_model(auto_class, model, load_config(model), dtype=dtype, seed=seed)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_distributions_are_those_of_the_constructor(kind: str) -> None:
    ours, theirs = build(kind, "gpu"), build(kind, "cpu")
    found, expected = dict(ours.named_parameters()), dict(theirs.named_parameters())
    assert list(found) == list(expected) and len(found) > 10
    large = 0
    for name, one in found.items():
        one, other = one.detach(), expected[name].detach()
        assert one.shape == other.shape and one.dtype == other.dtype
        assert found[name].requires_grad == expected[name].requires_grad
        if other.numel() > 1 and other.std() > 0 and other.numel() >= 500:
            error = 6 / other.numel() ** 0.5
            assert float(one.std()) == pytest.approx(float(other.std()), rel=error), name
            assert abs(float(one.mean() - other.mean())) < error * float(other.std()), name
            assert not torch.equal(one, other)
            large += 1
        elif other.numel() < 2 or other.std() == 0:
            assert torch.equal(one, other), name  # ones and zeros
    assert large >= 3
    buffers = dict(theirs.named_buffers())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in ours.named_buffers())


@pytest.mark.parametrize("kind", KINDS)
def test_they_depend_on_the_seed_alone(kind: str) -> None:
    torch.rand(int(torch.randint(9, ())))  # whatever was drawn before
    one, other, another = build(kind, "gpu"), build(kind, "gpu"), build(kind, "gpu", seed=4)
    pairs = list(zip(one.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(*pair) for pair in pairs)
    assert any(not torch.equal(*pair) for pair in zip(one.parameters(), another.parameters(), strict=True))
    equal_twins = [name for name, weight in one.named_parameters() if weight.dim() > 1 and is_twin(one, name, weight)]
    assert not equal_twins, "each module has numbers of its own"


def is_twin(model: nn.Module, name: str, weight: torch.Tensor) -> bool:
    others = [other for key, other in model.named_parameters() if key != name and other.shape == weight.shape]
    return weight.numel() > 1 and bool(weight.std() > 0) and any(torch.equal(weight, other) for other in others)


def test_a_module_has_the_same_weights_whatever_is_beside_it() -> None:
    shallow, deep = build("llama", "gpu", num_hidden_layers=1), build("llama", "gpu", num_hidden_layers=3)
    deeper = dict(deep.named_parameters())
    named = dict(shallow.named_parameters())
    assert all(torch.equal(weight, deeper[name]) for name, weight in named.items())


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_stay_tied(tied: bool) -> None:
    model = build("llama", "gpu", tie_word_embeddings=tied)
    untied = build("llama", "gpu", tie_word_embeddings=False)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert torch.equal(model.model.embed_tokens.weight, untied.model.embed_tokens.weight)


def test_the_states_of_the_generators_are_as_before() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    build("llama", "gpu")
    assert torch.equal(torch.rand(3), expected)


class Own(nn.Module):
    """A module with a weight that only its constructor draws."""

    def __init__(self) -> None:
        super().__init__()
        self.secret = nn.Parameter(torch.rand(2, 2))


def with_own() -> Any:
    auto_class, shape = KINDS["llama"]
    model = auto_class.from_config(load_config(ModelSection(source="llama", init="config", config=shape)))
    model.extra = Own()
    return model


def test_a_weight_that_no_rule_draws_is_refused() -> None:
    with pytest.raises(UserError, match=r"no rule of LlamaForCausalLM draws extra\.secret") as caught:
        build_by_name(with_own, seed=0, device=CPU, dtype=torch.float32)
    assert "init_device: cpu" in caught.value.remedy


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_that_of_float32_weights(kind: str) -> None:
    """Also where the rules of a layer draw what its parts have drawn once more, as GPT-2's do."""
    wide, half = build(kind, "gpu").to(torch.bfloat16), build(kind, "gpu", dtype=torch.bfloat16)
    ours, theirs = half.state_dict(), wide.state_dict()
    assert list(ours) == list(theirs)
    assert all(
        torch.equal(tensor, theirs[name]) and tensor.dtype == theirs[name].dtype for name, tensor in ours.items()
    )
    assert {name for name, _ in half.named_parameters()} == {name for name, _ in wide.named_parameters()}


def test_rules_that_ask_for_values_draw_the_same() -> None:
    def refusing() -> Any:
        model = constructed()
        rules = model._init_weights

        def ask(module: nn.Module) -> None:
            rules(module)
            if isinstance(module, nn.Linear):
                float(module.weight[0, 0])

        model._init_weights = ask
        return model

    def constructed() -> Any:
        auto_class, shape = KINDS["llama"]
        return auto_class.from_config(load_config(ModelSection(source="llama", init="config", config=shape)))

    ours, theirs = (build_by_name(one, seed=3, device=CPU, dtype=torch.bfloat16) for one in (refusing, constructed))
    assert all(torch.equal(*pair) for pair in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert {weight.dtype for weight in ours.parameters()} == {torch.bfloat16}


class Live(TorchDispatchMode):
    """The most bytes of storages made within that were alive at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._count, out)
        return out

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if tensor.is_meta or storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, storage._cdata, size)

    def _forget(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.live -= size


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_no_more_than_one_weight_is_float32_at_a_time(kind: str) -> None:
    deep = {"n_layer": 12, "n_positions": 64} if kind == "gpt2" else {"num_hidden_layers": 12}
    with Live() as live:
        model = build(kind, "gpu", dtype=torch.bfloat16, **deep)
    sizes = [weight.numel() for weight in model.parameters()]
    assert sum(sizes) > 12 * max(sizes)
    assert 2 * sum(sizes) <= live.peak <= 2 * sum(sizes) + 12 * max(sizes)  # one and what its rule makes; masks of each
