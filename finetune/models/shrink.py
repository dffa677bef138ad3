"""Configuration overrides for a small model of the same architecture, with fewer and narrower layers.

Pure functions of a configuration as a dict; torch is not imported.
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
LAYERS, MAX_HEADS, HEAD_DIM = 2, 4, 16
SMALL_WIDTH = 128  # models up to this hidden size are not narrowed


def shrunken(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Overrides to try, from the smallest model to the unchanged one.

    {"num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, ...}
    -> [{"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, ...},
        {"num_hidden_layers": 2}, {}]
    """
    shallow = _shallow(config)
    narrow = {**shallow, **_narrow(config)}
    return [*(overrides for overrides in (narrow, shallow) if overrides), {}]


def without_dropout(config: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides that disable random numbers in the forward pass: dropout of all kinds, and denoising queries. Those of a
    nested configuration (a backbone's) are that configuration, changed.
    """
    changes: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and key.endswith("_config"):
            if nested := without_dropout(value):
                changes[key] = {**value, **nested}
        elif ("drop" in key or key == "num_denoising") and type(value) in (int, float) and value:
            changes[key] = type(value)(0)
    return changes


def _shallow(config: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides for two layers: lists with one entry per layer are cut; stages of a CNN get one block each."""
    overrides: dict[str, Any] = {}
    for key in DEPTHS:
        layers = config.get(key)
        if isinstance(layers, int) and layers > LAYERS:
            overrides[key] = LAYERS
            for name, value in config.items():
                if isinstance(value, (list, tuple)) and len(value) == layers and name not in ("depths", "hidden_sizes"):
                    overrides[name] = list(value[:LAYERS])
    depths = config.get("depths")
    if isinstance(depths, (list, tuple)) and any(depth > 1 for depth in depths):
        overrides["depths"] = [1] * len(depths)
    return overrides


def _narrow(config: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides for at most four heads of dimension 16, with all other widths to match; {} if the model is narrow."""
    width = next((config[key] for key in WIDTHS if isinstance(config.get(key), int)), 0)
    heads = {key: min(config[key], MAX_HEADS) for key in HEADS if isinstance(config.get(key), int)}
    if width <= SMALL_WIDTH or not heads or len(set(heads.values())) != 1:
        return {}
    count = next(iter(heads.values()))
    overrides: dict[str, Any] = dict(heads)
    groups = config.get("num_key_value_heads")
    if isinstance(groups, int):
        ungrouped = groups >= next(config[key] for key in heads)
        overrides["num_key_value_heads"] = count if ungrouped else max(1, count // 2) if groups > 1 else 1
    overrides |= {key: count * HEAD_DIM for key in WIDTHS if isinstance(config.get(key), int)}
    overrides |= {key: HEAD_DIM for key in ("head_dim", "d_kv") if isinstance(config.get(key), int)}
    overrides |= {key: 2 * count * HEAD_DIM for key in INNER if isinstance(config.get(key), int)}
    return overrides
