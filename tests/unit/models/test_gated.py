"""Proves that gated layers which compute their activation again give the same bits, keep less, and are only those whose forward
pass is known.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.utils.checkpoint import checkpoint

from finetune.models.gated import recompute_gates

MODES = {"fp32": (torch.float32, False), "bf16": (torch.bfloat16, False), "autocast": (torch.float32, True)}
SIZES = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8,
}  # fmt: skip


def language_model(kind: str = "Llama", dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **more})
    return getattr(transformers, f"{kind}ForCausalLM")(config).to(dtype).train()


def losses_and_gradients(model: Any, autocast: bool) -> list[torch.Tensor]:
    tokens = torch.arange(24).view(2, 12)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
    loss.backward()
    return [loss.detach(), *(weight.grad for weight in model.parameters())]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("kind", "more"), [("Llama", {}), ("Gemma", {"hidden_activation": "gelu_pytorch_tanh"}), ("Qwen2", {})]
)
def test_losses_and_gradients_are_the_same_to_the_last_bit(kind: str, more: dict[str, Any], mode: str) -> None:
    dtype, autocast = MODES[mode]
    plain = language_model(kind, dtype, **more)
    ours = copy.deepcopy(plain)
    assert recompute_gates(ours) == 2
    ours = copy.deepcopy(ours)  # a copy computes with weights of its own
    for one, other in zip(losses_and_gradients(plain, autocast), losses_and_gradients(ours, autocast), strict=True):
        assert torch.equal(one, other)
    plain.eval(), ours.eval()
    with torch.no_grad():
        assert torch.equal(plain(torch.arange(5)[None]).logits, ours(torch.arange(5)[None]).logits)


def kept_bytes(layer: nn.Module, x: torch.Tensor) -> int:
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x).sum().backward()
    return sum(kept.values())


def test_one_activation_of_the_full_width_is_not_kept() -> None:
    model = language_model()
    layer, x = model.model.layers[0].mlp, torch.randn(64, 16, requires_grad=True)
    before = kept_bytes(layer, x)
    recompute_gates(model)
    assert before - kept_bytes(layer, x) == 64 * 40 * 4


def test_frozen_weights_and_checkpointing() -> None:
    plain = language_model()
    for name, weight in plain.named_parameters():
        weight.requires_grad = "up_proj" in name
    layer = plain.model.layers[0].mlp
    ours = copy.deepcopy(layer)
    assert recompute_gates(ours) == 1
    x = torch.randn(3, 16)
    layer(x).sum().backward()
    checkpoint(ours, x, use_reentrant=False).sum().backward()  # type: ignore[union-attr]
    assert torch.equal(layer.up_proj.weight.grad, ours.up_proj.weight.grad)
    assert ours.gate_proj.weight.grad is None


class Scaled(nn.Module):
    """The same parts, and another forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 4)
        self.act_fn = nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return out * 2


class Gated(Scaled):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def test_only_layers_with_the_known_forward_pass_and_a_plain_activation() -> None:
    assert recompute_gates(Scaled()) == 0
    layer = Gated()
    assert recompute_gates(layer) == 1
    assert recompute_gates(layer) == 0  # as it was done already
    other = Gated()
    other.act_fn = nn.PReLU()  # type: ignore[assignment]
    assert recompute_gates(other) == 0
