"""Differences between the settings of `accelerate launch` and the recipe, reported because the recipe wins."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.planning.plan import Plan

ENGINES = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}

ACCUMULATION = "gradient_accumulation_steps"
BATCH = ("train_batch_size", "train_micro_batch_size_per_gpu", ACCUMULATION)


def compare_with_launcher(environment: Mapping[str, str], plan: Plan) -> list[str]:
    """One line for each difference. The recipe goes first: the numbers must not depend on how it was started."""
    return (
        _compare_engines(environment, plan) + _compare_deepspeed(environment, plan) + _compare_batch(environment, plan)
    )


def compare_ranks(plan: Plan) -> list[str]:
    """A line if the launcher started another number of ranks than the recipe asks for."""
    asked = plan.recipe.parallel.processes
    if asked in ("auto", plan.ranks):
        return []
    return [
        f"note: parallel.processes: the recipe says {asked}, the launcher started {plan.ranks}; the launcher decides"
    ]


def _compare_engines(environment: Mapping[str, str], plan: Plan) -> list[str]:
    """Engines that no recipe asks for, and precision."""
    lines = [
        f"note: accelerate was started with {name}, the recipe trains with {plan.engine}; the recipe decides"
        for key, name in ENGINES.items()
        if environment.get(key, "false").lower() == "true"
    ]
    if (compiler := environment.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()) != "no":
        lines.append(f"note: accelerate's configuration says torch.compile by {compiler}; a recipe has no compiler")
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision not in ("no", plan.precision):
        lines.append(
            f"note: precision: accelerate's configuration says {precision}, the recipe {plan.precision}; the recipe decides"
        )
    return lines


def _compare_deepspeed(environment: Mapping[str, str], plan: Plan) -> list[str]:
    if environment.get("ACCELERATE_USE_DEEPSPEED", "false").lower() != "true":
        return []
    said = {key: value for key, value in _launcher_says(environment).items() if key not in BATCH}
    if plan.engine != "deepspeed":
        return [
            "note: accelerate was started with DeepSpeed, the recipe says parallel.deepspeed: none; the recipe decides"
        ]
    lines = []
    for key, theirs in said.items():
        mine: Any = plan.deepspeed
        for part in key.split("."):
            mine = mine.get(part) if isinstance(mine, Mapping) else None
        if theirs not in ("auto", None) and str(theirs).lower() != str(mine if mine is not None else "none").lower():
            lines.append(
                f"note: {key}: accelerate's configuration says {theirs}, the recipe {mine or 'none'}; the recipe decides"
            )
    return lines


def _compare_batch(environment: Mapping[str, str], plan: Plan) -> list[str]:
    """Batch sizes of the launcher's configuration, none of which is the one that is trained with unless it is the same."""
    said = _launcher_says(environment)
    said.setdefault(ACCUMULATION, environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1"))
    recipe = plan.recipe
    mine = {
        "train_batch_size": recipe.training.global_batch,
        "train_micro_batch_size_per_gpu": recipe.parallel.micro_batch,
        ACCUMULATION: 1,  # accelerate's default, and what says nothing
    }
    return [
        f"note: {key}: accelerate's configuration says {said[key]}; the recipe decides: training.global_batch "
        f"{recipe.training.global_batch}, parallel.micro_batch {recipe.parallel.micro_batch}"
        for key in BATCH
        if str(said.get(key) or "auto") not in ("auto", str(mine[key]))
    ]


def _launcher_says(environment: Mapping[str, str]) -> dict[str, Any]:
    """Dotted DeepSpeed keys -> values, from accelerate's environment or the JSON that it names."""
    file = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if file and Path(file).is_file():
        try:
            flat = _flatten(json.loads(Path(file).read_text(encoding="utf-8")))
        except (OSError, ValueError):  # the recipe decides, so nobody needs it
            return {}
        named = ("stage", "device", "gradient_clipping", *BATCH)
        return {key: value for key, value in flat.items() if key.split(".")[-1] in named}
    names = {
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": "zero_optimization.stage",
        "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "zero_optimization.offload_optimizer.device",
        "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "zero_optimization.offload_param.device",
        "ACCELERATE_GRADIENT_CLIPPING": "gradient_clipping",
    }
    return {key: environment[name] for name, key in names.items() if environment.get(name, "none") != "none"}


def _flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(node, Mapping):
        return {
            k: v for key, item in node.items() for k, v in _flatten(item, f"{prefix}.{key}" if prefix else key).items()
        }
    return {prefix: node}
