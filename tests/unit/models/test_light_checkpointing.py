"""Tests that light checkpointing keeps less, and changes no bit of losses and gradients, for layers of every kind."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from finetune.errors import UserError
from finetune.models.gated import recompute_gates
from finetune.models.light_checkpointing import LightCheckpointing, use_light_checkpointing
from finetune.models.low_rank import add_in_place

SMALL = {"hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
IDS = torch.arange(48).reshape(2, 24) * 7 % 50


def llama(**more: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=50, num_key_value_heads=2, **SMALL, **more)
    return transformers.LlamaForCausalLM(config)


def bert() -> Any:
    torch.manual_seed(0)
    drop = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=50, **SMALL, **drop))


def gpt2() -> Any:
    torch.manual_seed(0)
    drop = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, **drop))


def gated(model: Any) -> Any:
    assert recompute_gates(model) == 2
    return model


def with_adapter(model: Any) -> Any:
    torch.manual_seed(1)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert add_in_place(adapted) == 14
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight)
    return adapted


MODELS = {
    "llama": (llama, {"activations": 2, "gated products": 2}),
    "llama with gates again": (lambda: gated(llama()), {"activations": 2, "gated products": 2}),
    "llama with an adapter": (lambda: with_adapter(gated(llama())), {"activations": 2, "gated products": 2}),
    "bert": (bert, {"norms": 4, "activations": 2}),
    "gpt2": (gpt2, {"norms": 4, "activations": 2}),
}


def step(model: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Loss and gradients."""
    model.train()
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    gradients = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
    model.zero_grad()
    return loss.detach(), gradients


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_bit_changes(name: str, dtype: torch.dtype) -> None:
    make, outputs = MODELS[name]
    model = make().to(dtype)
    wanted_loss, wanted = step(model)
    light = use_light_checkpointing(model)
    assert dict(light.outputs) == outputs
    for _ in range(2):
        loss, gradients = step(model)
        assert torch.equal(loss, wanted_loss) and len(gradients) == len(wanted)
        assert all(torch.equal(mine, other) for mine, other in zip(gradients, wanted, strict=True))
    assert light.dropped >= 2 * outputs.get("gated products", 0) + 2 * outputs.get("norms", 0)


def test_under_autocast_no_bit_changes() -> None:
    model = bert()
    with torch.autocast("cpu", torch.bfloat16):
        wanted_loss, wanted = step(model)
        light = use_light_checkpointing(model)
        loss, gradients = step(model)
    assert light.dropped and torch.equal(loss, wanted_loss)
    assert all(torch.equal(mine, other) for mine, other in zip(gradients, wanted, strict=True))


class Live(TorchDispatchMode):
    """Bytes of all storages made within that are still alive, and the most at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known:
                    self._known.add(storage._cdata)
                    self.live += storage.nbytes()
                    self.peak = max(self.peak, self.live)
                    weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return out

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


@pytest.mark.parametrize(("name", "share"), [("llama with gates again", 0.93), ("bert", 0.8), ("gpt2", 0.82)])
def test_less_is_held_between_the_passes(name: str, share: float) -> None:
    def held(model: Any) -> int:
        model.train()
        with Live() as bytes_of:
            loss = model(input_ids=IDS.repeat(8, 1)).logits.sum()
            live = bytes_of.live
        loss.backward()
        return live

    make, _ = MODELS[name]
    before = held(make())
    model = make()
    use_light_checkpointing(model)
    assert held(model) <= share * before


def test_addresses_are_forgotten_with_their_tensors() -> None:
    model = bert()
    light = use_light_checkpointing(model)
    step(model)
    with torch.no_grad():
        model(input_ids=IDS)
    assert not light._sources and not light._open
    model.eval()(input_ids=IDS)
    assert not light._open


def test_a_failing_layer_leaves_nothing_open() -> None:
    model = bert()
    light = use_light_checkpointing(model)
    model.bert.encoder.layer[1].output.dense.forward = lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        model(input_ids=IDS)
    assert not light._open


def test_a_second_backward_pass_computes_again() -> None:
    model = bert()
    use_light_checkpointing(model)
    loss = model(input_ids=IDS, labels=IDS).loss
    first = torch.autograd.grad(loss, list(model.bert.encoder.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(model.bert.encoder.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_model_without_such_layers_is_refused() -> None:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    with pytest.raises(UserError, match="resnet"):
        use_light_checkpointing(transformers.ResNetForImageClassification(config))


def test_the_watcher_keeps_no_model_alive() -> None:
    light = LightCheckpointing()
    layer = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4))
    light.watch_layer(layer)
    out = layer(torch.randn(3, 4)).sum()
    assert light.dropped == 1
    out.backward()
    assert layer[2].weight.grad is not None


def test_a_pass_without_a_backward_pass_is_freed() -> None:
    """Such as one that ended for lack of memory: operators that save their output hold no cycle."""
    model = bert()
    use_light_checkpointing(model)
    saved: list[weakref.ref[torch.Tensor]] = []

    def softmax(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        weights = output.softmax(dim=-1)
        saved.append(weakref.ref(weights))
        return output * weights

    for layer in model.bert.encoder.layer:
        layer.attention.output.dense.register_forward_hook(softmax)
    model(input_ids=IDS)
    assert len(saved) == 2 and not any(one() is not None for one in saved)


class Residual(nn.Module):
    """An activation whose input changes afterwards: autograd allows it, as the activation saves its output alone."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(4, 4), act, nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = self.up(x)
        out: torch.Tensor = self.down(self.act(wide))
        if not getattr(self.act, "inplace", False):
            wide.add_(1.0)
        return out


def test_an_input_that_was_changed_is_an_error() -> None:
    layer = Residual(nn.Tanh())
    LightCheckpointing().watch_layer(layer)
    with pytest.raises(RuntimeError, match="in place"):
        layer(torch.randn(3, 4)).sum().backward()


def test_activations_in_place_are_kept() -> None:
    light, layer = LightCheckpointing(), Residual(nn.SiLU(inplace=True))
    light.watch_layer(layer)
    assert not light.outputs


class Rotated(torch.autograd.Function):
    """In its input's memory, unknown to torch, as liger-kernel's rotary embeddings are."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        inner = x.transpose(0, 1)
        inner.detach().numpy()[:] *= -2.0
        return inner.transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, incoming: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return -2.0 * incoming


class HeadNorm(nn.Module):
    """As Qwen3's attention: a norm, rotary embeddings, and products of what they give."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q_proj, self.q_norm = nn.Linear(4, 4), nn.LayerNorm(4)
        self.key = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query: torch.Tensor = Rotated.apply(self.q_norm(self.q_proj(x)).transpose(0, 1))  # type: ignore[no-untyped-call]
        return query.transpose(0, 1).contiguous() @ self.key


def test_an_output_that_kernels_write_over_is_kept() -> None:
    plain, layer, x = HeadNorm(), HeadNorm(), torch.randn(3, 4)
    LightCheckpointing().watch_layer(layer)
    for each in (plain, layer):
        each(x).square().sum().backward()
    assert plain.key.grad is not None and layer.key.grad is not None
    assert torch.equal(layer.key.grad, plain.key.grad)
