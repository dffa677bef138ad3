"""From a plain DeepSpeed JSON with "auto" to the configuration that the engine gets."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from finetune.planning.batch import BatchPlan
from finetune.planning.tensor import tensor_section
from finetune.recipe.deepspeed import DECIDED

# Gradients are summed by our own loop, which tells the engine where a step ends. Some engines (CPU offload) keep their
# accumulation buffer only if the configuration says more than 1; the loop never divides by it.
ACCUMULATION_IN_ENGINE = 2
NOTES = {  # beside the configuration in plan.json, for whoever reads it
    "gradient_accumulation_steps": "always 2: the training loop tells the engine where a step ends, and divides by global "
    "units itself; from 2 on every engine keeps its accumulation buffer. The plan's own number is batch.accumulation.",
    "train_batch_size": "what DeepSpeed's consistency check expects; it affects nothing else. The "
    "plan's own number is batch.global_batch.",
}


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
    """Fill every "auto" of a configuration that does not contradict the recipe.

    layer_elements: parameters of the largest repeated layer; buckets are sized to hold whole layers, because a bucket
    smaller than a layer splits its reduction and one far larger delays it past the backward pass that could hide it.
    zero_settings: what the model needs in `zero_optimization`, over what the file says.
    tensor: ranks that share the matrices of each layer.
    """
    resolved = {key: deepcopy(value) for key, value in config.items() if key not in DECIDED}
    resolved["train_micro_batch_size_per_gpu"] = batch.micro_batch
    resolved["gradient_accumulation_steps"] = ACCUMULATION_IN_ENGINE
    resolved["train_batch_size"] = batch.micro_batch * ACCUMULATION_IN_ENGINE * batch.replicas
    if tensor > 1:
        resolved["tensor_parallel"] = tensor_section(tensor)
        resolved["train_batch_size"] *= tensor  # DeepSpeed checks it against all ranks, and does nothing else with it
    resolved["gradient_clipping"] = max_grad_norm
    for name in ("bf16", "fp16"):
        resolved[name] = {**resolved.get(name, {}), "enabled": precision == name}
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
    return resolved


def zero_stage(config: dict[str, Any] | None) -> int:
    """0 to 3; 0 for plain DistributedDataParallel too."""
    return int((config or {}).get("zero_optimization", {}).get("stage", 0))


def offloads(config: dict[str, Any] | None, what: str = "optimizer") -> bool:
    """Whether `optimizer` states or `param`s live off the accelerator."""
    section = (config or {}).get("zero_optimization", {}).get(f"offload_{what}") or {}
    return section.get("device", "none") != "none"
