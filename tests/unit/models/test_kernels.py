"""Proves that liger-kernel's layers are asked for with its own names and signatures, replace those of one model alone, never
run on a CPU tensor, and leave the losses as they are, by a stand-in of liger-kernel 0.8.5 that computes on the CPU with the
Triton kernels' rules on dtypes. The kernels themselves need a GPU: not run here.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import MethodType, ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from finetune.models import kernels
from finetune.models.kernels import liger_options, liger_types, use_liger

CALLS: list[str] = []


def liger_rotary_pos_emb(
    q: Any, k: Any, cos: Any, sin: Any, position_ids: Any = None, unsqueeze_dim: int = 1, rotary_dim: int | None = None
) -> Any:
    """The kernel writes into q and k: their dtype stays, also beside cos and sin in float32."""
    CALLS.append("rope")
    half = q.shape[-1] // 2
    cos, sin = cos.unsqueeze(unsqueeze_dim).float(), sin.unsqueeze(unsqueeze_dim).float()
    turned = [torch.cat((-x[..., half:], x[..., :half]), -1) for x in (q, k)]
    return tuple((x.float() * cos + y.float() * sin).to(x.dtype) for x, y in zip((q, k), turned, strict=True))


class LigerRMSNorm(nn.Module):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """casting_mode "llama": statistics in float32, the output in the dtype of the input."""
        CALLS.append("norm")
        x = hidden_states.float()
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)
        out: torch.Tensor = x.to(hidden_states.dtype) * self.weight.to(hidden_states.dtype)
        return out


class LigerSwiGLUMLP(nn.Module):
    def forward(self, x: Any) -> Any:
        CALLS.append("mlp")
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


def apply_liger_kernel_to_llama(
    rope: bool = True,
    cross_entropy: bool = False,
    fused_linear_cross_entropy: bool = True,
    rms_norm: bool = True,
    swiglu: bool = True,
    model: Any = None,
) -> None:
    """As liger-kernel's: classes and functions of the module, then the layers of the instance."""
    assert not cross_entropy and not fused_linear_cross_entropy
    named: Any = modeling_llama
    if rope:
        named.apply_rotary_pos_emb = liger_rotary_pos_emb
    if rms_norm:
        named.LlamaRMSNorm = LigerRMSNorm
    if swiglu:
        named.LlamaMLP = LigerSwiGLUMLP
    base = getattr(model, model.base_model_prefix, model)
    norms = [base.norm, *(n for layer in base.layers for n in (layer.input_layernorm, layer.post_attention_layernorm))]
    for norm in norms if rms_norm else ():
        norm.forward = MethodType(LigerRMSNorm.forward, norm)
    for layer in base.layers if swiglu else ():
        layer.mlp.forward = MethodType(LigerSwiGLUMLP.forward, layer.mlp)


def _apply_liger_kernel_to_instance(model: Any, **kwargs: Any) -> None:
    apply: Callable[..., None] = apply_liger_kernel_to_llama
    known = inspect.signature(apply).parameters
    apply(model=model, **{key: value for key, value in kwargs.items() if key in known})


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A stand-in that is installed, on a machine with a GPU."""
    CALLS.clear()
    stand_in: Any = ModuleType(kernels.PATCHES)
    stand_in.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": apply_liger_kernel_to_llama}
    stand_in._apply_liger_kernel_to_instance = _apply_liger_kernel_to_instance
    package: Any = ModuleType("liger_kernel")
    package.__spec__ = SimpleNamespace()
    for name, module in {"liger_kernel": package, kernels.PATCHES: stand_in}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(kernels, "uses_cuda", lambda: True)
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", modeling_llama.apply_rotary_pos_emb)
    return stand_in  # type: ignore[no-any-return]


def llama(**settings: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, "num_attention_heads": 2, "num_key_value_heads": 1, **settings}))


TOKENS = torch.arange(20).view(2, 10)


def loss_and_norm(model: Any, *, autocast: bool = False) -> tuple[float, float]:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(input_ids=TOKENS, labels=TOKENS).loss
    loss.backward()
    return loss.item(), float(torch.stack([p.grad.float().norm() for p in model.parameters()]).norm())


@pytest.mark.parametrize(
    ("weights", "autocast", "tolerance"),
    [(torch.float32, False, 1e-5), (torch.bfloat16, False, 2e-2), (torch.float32, True, 2e-2)],
)
def test_one_model_is_patched_and_trains_the_same(
    liger: ModuleType, weights: torch.dtype, autocast: bool, tolerance: float
) -> None:
    plain, patched = llama().to(weights), llama().to(weights)
    use_liger(patched)
    expected, found = (loss_and_norm(model, autocast=autocast) for model in (plain, patched))
    assert found == pytest.approx(expected, rel=tolerance)
    assert CALLS.count("norm") == 5 and CALLS.count("mlp") == 2  # of the patched one alone


def test_what_was_replaced_for_the_whole_process_is_put_back(liger: ModuleType) -> None:
    norm, mlp = modeling_llama.LlamaRMSNorm, modeling_llama.LlamaMLP
    for _ in range(2):  # a second model, such as a reference
        use_liger(llama())
    assert modeling_llama.LlamaRMSNorm is norm and modeling_llama.LlamaMLP is mlp
    rope: Any = modeling_llama.apply_rotary_pos_emb
    assert rope.plain.__name__ == "apply_rotary_pos_emb" and not hasattr(rope.plain, "plain")
    loss_and_norm(llama())
    assert CALLS == []  # a new model computes nothing of liger's on CPU tensors


def test_rotary_embeddings_are_liger_s_on_a_gpu_alone(liger: ModuleType) -> None:
    use_liger(llama())
    rope: Any = modeling_llama.apply_rotary_pos_emb
    x = torch.randn(1, 2, 3, 8)
    of_gpu = SimpleNamespace(is_cuda=True, shape=x.shape)
    with pytest.raises((TypeError, AttributeError)):
        rope(of_gpu, of_gpu, torch.ones(1, 3, 8), torch.ones(1, 3, 8))
    assert CALLS == ["rope"]
    rope(x, x, torch.ones(1, 3, 8), torch.ones(1, 3, 8))
    assert CALLS == ["rope"]


def with_both_gates(swiglu: bool = True, geglu: bool = True, model: Any = None) -> None:
    """The signature of a function of liger-kernel."""


def without_rope(rope: bool = False, rms_norm: bool = True, swiglu: bool = False, model: Any = None) -> None:
    """As that of GLM-4, which raises when it is asked for rotary embeddings."""


def test_nothing_is_asked_for_that_liger_leaves_off_for_a_model_type() -> None:
    options = liger_options(llama().config, without_rope)
    assert {name for name, asked in options.items() if asked} == {"rms_norm"}


@pytest.mark.parametrize(
    ("activation", "swiglu", "geglu"),
    [("silu", True, False), ("gelu_pytorch_tanh", False, True), ("relu", False, False)],
)
def test_a_gate_of_another_activation_stays_as_it_is(
    liger: ModuleType, activation: str, swiglu: bool, geglu: bool
) -> None:
    model = llama(hidden_act=activation)
    options = liger_options(model.config, with_both_gates)
    assert (options["swiglu"], options["geglu"]) == (swiglu, geglu)
    assert not options["cross_entropy"] and not options["fused_linear_cross_entropy"]
    use_liger(model)
    loss_and_norm(model)
    assert CALLS.count("mlp") == (2 if swiglu else 0)


def test_never_on_a_cpu(liger: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert liger_types() == {"llama"}
    monkeypatch.setattr(kernels, "uses_cuda", lambda: False)
    assert liger_types() is None
    with pytest.raises(RuntimeError, match="GPU"):
        use_liger(llama())
