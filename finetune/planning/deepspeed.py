"""A plain DeepSpeed JSON with "auto" where we derive -> the configuration that the engine gets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from finetune.errors import UserError
from finetune.planning.batch import BatchPlan
from finetune.planning.tensor import tensor_section

# Gradients are summed by our own loop, which tells the engine where a step ends. Some engines (CPU offload) keep their
# accumulation buffer only if the configuration says more than 1, so 2 is said, and the loop never divides by it.
ACCUMULATION_IN_ENGINE = 2


def read_deepspeed_config(path: Path) -> dict[str, Any]:
    """The JSON as written. Raises: UserError with the line for broken JSON."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(
            f"not valid JSON: {error.msg}", where=f"{path}:{error.lineno}", remedy="a DeepSpeed config is plain JSON"
        ) from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path)) from None
    if not isinstance(config, dict):
        raise UserError("a DeepSpeed config is a JSON object", where=str(path))
    return config


def resolve_deepspeed_config(
    config: dict[str, Any],
    *,
    batch: BatchPlan,
    precision: str,
    max_grad_norm: float,
    layer_elements: int = 0,
    hidden_size: int = 0,
    zero_settings: Mapping[str, Any] | None = None,
    tensor: int = 1,
) -> dict[str, Any]:
    """Fill every "auto" and check what contradicts the recipe.

    layer_elements: parameters of the largest repeated layer; buckets are sized to hold whole layers, because a bucket
    smaller than a layer splits its reduction and one far larger delays it past the backward pass that could hide it.
    zero_settings: what the model needs in `zero_optimization`, over what the file says.
    tensor: ranks that share each layer's matrices.
    Raises: UserError for keys that belong to the recipe (optimizer, scheduler) or precision that contradicts it.
    """
    resolved = deepcopy(config)
    for key in ("optimizer", "scheduler"):
        if key in resolved:
            raise UserError(
                f"the DeepSpeed config sets {key!r}, which the recipe decides",
                where=str(config.get("_path", "DeepSpeed config")),
                remedy=f"remove {key!r} there and set it under training: in the recipe",
            )
    if "tensor_parallel" in resolved:
        raise UserError(
            "the DeepSpeed config sets 'tensor_parallel', which the recipe decides",
            remedy="remove it there and set parallel.tensor in the recipe",
        )
    _fill(resolved, "train_micro_batch_size_per_gpu", batch.micro_batch)
    resolved["gradient_accumulation_steps"] = ACCUMULATION_IN_ENGINE
    resolved["train_batch_size"] = resolved["train_micro_batch_size_per_gpu"] * ACCUMULATION_IN_ENGINE * batch.replicas
    if tensor > 1:
        resolved["tensor_parallel"] = tensor_section(tensor)
        resolved["train_batch_size"] *= tensor  # DeepSpeed checks it against all ranks, and does nothing else with it
    _fill(resolved, "gradient_clipping", max_grad_norm)
    for name in ("bf16", "fp16"):
        section = resolved.setdefault(name, {"enabled": "auto"})
        wanted = precision == name
        if section.get("enabled", "auto") == "auto":
            section["enabled"] = wanted
        elif bool(section["enabled"]) != wanted:
            raise UserError(
                f"the DeepSpeed config says {name}.enabled: {section['enabled']}, the recipe trains in {precision}",
                remedy=f'write "auto" there, or set training.precision to {name if section["enabled"] else "fp32"}',
            )
    zero = resolved.setdefault("zero_optimization", {"stage": 0})
    zero |= zero_settings or {}
    bucket = max(layer_elements, 1_000_000) if layer_elements else 50_000_000
    for key, value in {
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        "stage3_prefetch_bucket_size": bucket,
        "stage3_param_persistence_threshold": 10 * hidden_size if hidden_size else 100_000,
        "stage3_max_live_parameters": max(1_000_000_000, 2 * bucket),
        "stage3_max_reuse_distance": max(1_000_000_000, 2 * bucket),
        "sub_group_size": 1_000_000_000,
    }.items():
        if zero.get(key) == "auto":
            zero[key] = value
    resolved["zero_allow_untested_optimizer"] = True
    resolved["zero_force_ds_cpu_optimizer"] = False
    resolved.setdefault("steps_per_print", 2**31 - 1)
    left = [key for key, value in _leaves(resolved) if value == "auto"]
    if left:
        raise UserError(f'the DeepSpeed config leaves "auto" where nothing is derived: {", ".join(left)}')
    return resolved


def zero_stage(config: dict[str, Any] | None) -> int:
    """0 to 3; 0 for plain DistributedDataParallel too."""
    return int((config or {}).get("zero_optimization", {}).get("stage", 0))


def offloads(config: dict[str, Any] | None, what: str = "optimizer") -> bool:
    """Whether `optimizer` states or `param`s live off the accelerator."""
    section = (config or {}).get("zero_optimization", {}).get(f"offload_{what}") or {}
    return section.get("device", "none") != "none"


def _fill(section: dict[str, Any], key: str, value: Any) -> None:
    if section.get(key, "auto") == "auto":
        section[key] = value


def _leaves(node: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(node, dict):
        return [leaf for key, item in node.items() for leaf in _leaves(item, f"{prefix}.{key}" if prefix else key)]
    return [(prefix, node)]
