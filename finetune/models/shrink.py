"""A small model of the same architecture: overrides of a configuration that leave every part in place, but fewer and
narrower. Pure functions of a configuration as a dict; no torch here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DEPTHS = (
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_decoder_layers", "encoder_layers", "decoder_layers",
)  # fmt: skip
HEADS = ("num_attention_heads", "num_heads", "n_head", "n_heads", "encoder_attention_heads", "decoder_attention_heads")
WIDTHS = ("hidden_size", "d_model", "n_embd", "dim")
INNER = (
    "intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "n_inner", "hidden_dim",
    "moe_intermediate_size",
)  # fmt: skip
LAYERS, FEW_HEADS, HEAD_WIDTH = 2, 4, 16
SMALL = 128  # a model this narrow is small already


def shrunken(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Overrides to try, the smallest model first; the last one changes nothing.

    {"num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, ...}
    -> [{"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, ...},
        {"num_hidden_layers": 2}, {}]
    """
    shallow = _shallow(config)
    narrow = {**shallow, **_narrow(config)}
    return [candidate for number, candidate in enumerate((narrow, shallow, {})) if candidate or number == 2]


def without_dropout(config: Mapping[str, Any]) -> dict[str, Any]:
    """Whatever draws random numbers in a forward pass, at 0: dropout of all kinds, the noisy queries of detectors."""
    return {
        key: type(value)(0)
        for key, value in config.items()
        if ("drop" in key or key == "num_denoising") and type(value) in (int, float) and value
    }


def _shallow(config: Mapping[str, Any]) -> dict[str, Any]:
    """Two layers; lists with an entry a layer are cut; stages of a convolutional network get one block each."""
    found: dict[str, Any] = {}
    for key in DEPTHS:
        layers = config.get(key)
        if isinstance(layers, int) and layers > LAYERS:
            found[key] = LAYERS
            for name, value in config.items():
                if isinstance(value, (list, tuple)) and len(value) == layers and name not in ("depths", "hidden_sizes"):
                    found[name] = list(value[:LAYERS])
    depths = config.get("depths")
    if isinstance(depths, (list, tuple)) and any(depth > 1 for depth in depths):
        found["depths"] = [1] * len(depths)
    return found


def _narrow(config: Mapping[str, Any]) -> dict[str, Any]:
    """A few heads of 16, and everything else after them."""
    width = next((config[key] for key in WIDTHS if isinstance(config.get(key), int)), 0)
    heads = {key: min(config[key], FEW_HEADS) for key in HEADS if isinstance(config.get(key), int)}
    if width <= SMALL or not heads or len(set(heads.values())) != 1:
        return {}
    count = next(iter(heads.values()))
    found: dict[str, Any] = dict(heads)
    groups = config.get("num_key_value_heads")
    if isinstance(groups, int):
        whole = groups >= next(config[key] for key in heads)
        found["num_key_value_heads"] = count if whole else max(1, count // 2) if groups > 1 else 1
    found |= {key: count * HEAD_WIDTH for key in WIDTHS if isinstance(config.get(key), int)}
    found |= {key: HEAD_WIDTH for key in ("head_dim", "d_kv") if isinstance(config.get(key), int)}
    found |= {key: 2 * count * HEAD_WIDTH for key in INNER if isinstance(config.get(key), int)}
    return found
