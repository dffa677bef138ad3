"""What a configuration says about a model's size, before any weight exists."""

from __future__ import annotations

from typing import Any

from finetune.data.order.cost import CostModel

MULTIPLE = 8  # long rows are padded to a multiple of it, which kernels for attention masks like


def hidden_size(config: Any) -> int:
    """Width of the widest layer; 0 if the configuration does not say."""
    text = getattr(config, "text_config", config)
    widths = [getattr(text, "hidden_size", 0) or 0, *(getattr(text, "hidden_sizes", None) or [])]
    return int(max(widths))


def layer_elements(config: Any) -> int:
    """Parameters of one transformer layer: attention (query, key, value, output) and feed-forward matrices.

    A Llama layer has 2*h*h + 2*h*kv + 3*h*i (13.0 h^2 for Llama-3-8B). 0 where the configuration is no transformer's.
    """
    text = getattr(config, "text_config", config)
    width, heads = getattr(text, "hidden_size", 0) or 0, getattr(text, "num_attention_heads", 0) or 0
    if not width or not heads or not isinstance(width, int):
        return 0
    head_dim = getattr(text, "head_dim", None) or width // heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    inner = getattr(text, "intermediate_size", None) or 4 * width
    gated = getattr(text, "hidden_act", "") in ("silu", "swish", "gelu_pytorch_tanh")
    return 2 * width * head_dim * (heads + kv_heads) + (3 if gated else 2) * width * inner


def usable_positions(asked: int, config: Any) -> int:
    """Tokens of a sequence: what the recipe asks, or as many positions as the model has.

    Padding to a multiple of 8 must not lead beyond the last position: 512 of RoBERTa's 514, 48 of 50.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < MULTIPLE:
        return asked
    return min(asked, positions // MULTIPLE * MULTIPLE)


def cost_model(config: Any) -> CostModel:
    """Relative cost of a sequence by its length; a plain count where the configuration is no transformer's."""
    text = getattr(config, "text_config", config)
    names = ("hidden_size", "num_attention_heads", "num_hidden_layers")
    sizes = [getattr(text, name, None) for name in names]
    width, heads, layers = (size if isinstance(size, int) else 0 for size in sizes)
    if not width or not heads or not layers:
        return CostModel()
    return CostModel.from_config_shape(
        hidden=width,
        layers=layers,
        heads=heads,
        intermediate=getattr(text, "intermediate_size", None) or 4 * width,
        vocab=getattr(text, "vocab_size", 0) or 0,
        kv_heads=getattr(text, "num_key_value_heads", None),
        head_dim=getattr(text, "head_dim", None),
        gated=getattr(text, "hidden_act", "") in ("silu", "swish", "gelu_pytorch_tanh"),
        causal=not hasattr(text, "type_vocab_size"),
    )
