"""What a DeepSpeed JSON may say beside a recipe: how states are sharded and moved, never what is learned.

Every key that would change the mathematics is a fault unless it says what the recipe says. Needs no DeepSpeed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import Fault, UserError
from finetune.recipe.faults import nearest, show_value
from finetune.recipe.json_file import read_json
from finetune.recipe.recipe import Recipe

AUTO = "auto"

# Keys that leave the training as it is: sharding, logging, profiling, disks.
HARMLESS = {
    "activation_checkpointing", "aio", "checkpoint", "comet", "comms_logger", "csv_monitor", "disable_allgather",
    "disable_python_gc", "dump_state", "flops_profiler", "log_level", "memory_breakdown", "monitor_config", "nebula",
    "steps_per_print", "tensorboard", "timers", "vocabulary_size", "wall_clock_breakdown", "wandb",
    "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "zero_optimization",
}  # fmt: skip

# Key -> where the recipe decides it.
DECIDED = {
    "optimizer": "training.optimizer",
    "scheduler": "training.schedule",
    "tensor_parallel": "parallel.tensor",
    "gradient_accumulation_steps": "training.global_batch and parallel.micro_batch",
    "dataloader_drop_last": "finetune's own loader, which leaves nothing out",
}

# Key -> the value under which gradients and weights are what finetune computes; dotted keys are inside sections.
NEUTRAL: dict[str, Any] = {
    "prescale_gradients": False,
    "gradient_predivide_factor": 1.0,
    "gradient_allreduce_op": "mean",
    "communication_data_type": None,
    "seq_parallel_communication_data_type": None,
    "sparse_gradients": False,
    "amp.enabled": False,
    "torch_autocast.enabled": False,
    "data_types.grad_accum_dtype": None,
    "bf16.bf16_master_weights_and_grads": False,
    "bf16.bf16_optimizer_states": False,
    "fp16.auto_cast": False,
    "fp16.fp16_master_weights_and_grads": False,
    "curriculum_learning.enabled": False,
    "data_efficiency.enabled": False,
    "progressive_layer_drop.enabled": False,
    "eigenvalue.enabled": False,
    "elasticity.enabled": False,
    "autotuning.enabled": False,
    "hybrid_engine.enabled": False,
    "zero_optimization.compute_grad_norm": True,
    "zero_optimization.zenflow": None,
}
WRITERS = {  # section -> the folder that DeepSpeed's own default names, the service that it sends to
    "tensorboard": ("DeepSpeedJobName", ""),
    "csv_monitor": ("DeepSpeedJobName", ""),
    "wandb": ("", "a W&B run of its own"),
    "comet": ("", "comet.com"),
}
SECTIONS = {"bf16", "fp16", *(key.partition(".")[0] for key in NEUTRAL if "." in key)}
RESTS = {  # keys of the recipe that a fault rests on
    "gradient_clipping": ("training.max_grad_norm",),
    "train_batch_size": ("training.global_batch",),
    "train_micro_batch_size_per_gpu": ("parallel.micro_batch",),
    "bf16.enabled": ("training.precision",),
    "fp16.enabled": ("training.precision",),
}
COMPARED = {"gradient_clipping", "train_batch_size", "train_micro_batch_size_per_gpu"}
# Keys for which planning derives a value.
DERIVED = {
    *DECIDED, *COMPARED, "bf16.enabled", "fp16.enabled",
    *(
        f"zero_optimization.{key}"
        for key in (
            "reduce_bucket_size", "allgather_bucket_size", "stage3_prefetch_bucket_size",
            "stage3_param_persistence_threshold", "stage3_max_live_parameters", "stage3_max_reuse_distance",
            "sub_group_size",
        )
    ),
}  # fmt: skip
KNOWN = {*HARMLESS, *DECIDED, *SECTIONS, *COMPARED, *(key for key in NEUTRAL if "." not in key)}
ROUNDING = ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients")


@dataclass(frozen=True)
class Asked:
    """What the recipe says of these keys. micro_batch: None where it is derived. precisions: those it may come to."""

    max_grad_norm: float
    global_batch: int
    micro_batch: int | None
    precisions: tuple[str, ...]

    @classmethod
    def of(cls, recipe: Recipe, precisions: tuple[str, ...]) -> Asked:
        micro_batch = recipe.parallel.micro_batch
        fixed = micro_batch if isinstance(micro_batch, int) else None
        return cls(recipe.training.max_grad_norm, recipe.training.global_batch, fixed, precisions)


def read_deepspeed_config(path: Path) -> dict[str, Any]:
    """The JSON as written. Raises: UserError with the line for broken JSON."""
    try:
        config = read_json(path)
    except json.JSONDecodeError as error:
        raise UserError(
            f"not valid JSON: {error.msg}", where=f"{path}:{error.lineno}", remedy="A DeepSpeed config is plain JSON."
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read: {getattr(error, 'strerror', error)}", where=str(path)) from None
    if not isinstance(config, dict):
        raise UserError("a DeepSpeed config is a JSON object", where=str(path))
    return config


def config_faults(config: Mapping[str, Any], asked: Asked, *, where: str) -> list[Fault]:
    """Everything in the file that contradicts the recipe. where: the file."""
    return [
        Fault(where, key, message, show_value(value, key), allowed, near, RESTS.get(key, ()))
        for key, value, message, allowed, near in _contradictions(config, asked)
    ]


def rounding_keys(config: Mapping[str, Any]) -> list[str]:
    """Keys that round what travels between ranks: allowed, but the numbers are no longer those of other engines."""
    zero = config.get("zero_optimization")
    return [key for key in ROUNDING if isinstance(zero, Mapping) and zero.get(key)]


def outside_writers(config: Mapping[str, Any]) -> list[str]:
    """Sections by which DeepSpeed itself writes outside of the run folder or sends to a service, each with where to."""
    found = []
    for key, (default, service) in WRITERS.items():
        section = config.get(key)
        if isinstance(section, Mapping) and section.get("enabled"):
            place = Path(section.get("output_path") or "", section.get("job_name") or default)
            found.append(f"{key} (to {service or place})")
    profile = config.get("flops_profiler")
    if isinstance(profile, Mapping) and profile.get("enabled") and profile.get("output_file"):
        found.append(f"flops_profiler (to {profile['output_file']})")
    return found


Contradiction = tuple[str, Any, str, str, str]  # key, value, message, allowed, nearest


def _contradictions(config: Mapping[str, Any], asked: Asked) -> Iterator[Contradiction]:
    for key, value in config.items():
        if key not in KNOWN:
            message = "not a key that is known to leave the training as the recipe describes it"
            yield key, value, message, "", nearest(key, sorted(KNOWN))
        elif key in DECIDED and value != AUTO:
            yield key, value, f"the recipe decides: {DECIDED[key]}", '"auto", or leave it out', ""
        elif key in {*SECTIONS, "zero_optimization"} and not isinstance(value, Mapping):
            yield key, value, "not a section", "a JSON object", ""
    for key, value in _leaves(config):
        if value == AUTO and key not in DERIVED and key.partition(".")[0] not in DECIDED:
            yield key, value, "nothing is derived for this key", "a value", ""
    yield from _differing(config, asked)
    yield from _precisions(config, asked)
    for dotted, neutral in NEUTRAL.items():
        section, _, key = dotted.rpartition(".")
        inside = config.get(section, {}) if section else config
        if isinstance(inside, Mapping) and inside.get(key, neutral) != neutral:
            allowed = f"{json.dumps(neutral)}, or leave it out"
            yield dotted, inside[key], "changes what is learned, which the recipe alone decides", allowed, ""


def _differing(config: Mapping[str, Any], asked: Asked) -> Iterator[Contradiction]:
    for key, name, wanted in (
        ("gradient_clipping", "training.max_grad_norm", asked.max_grad_norm),
        ("train_batch_size", "training.global_batch", asked.global_batch),
        ("train_micro_batch_size_per_gpu", "parallel.micro_batch", asked.micro_batch),
    ):
        value = config.get(key, AUTO)
        if value not in (AUTO, wanted):
            shown = "derived" if wanted is None else f"{wanted:g}"
            yield key, value, f"the recipe says {name}: {shown}", f'"auto", or {name}: {show_value(value)}', ""


def _precisions(config: Mapping[str, Any], asked: Asked) -> Iterator[Contradiction]:
    for name in ("bf16", "fp16"):
        section = config.get(name, {})
        enabled = section.get("enabled", AUTO) if isinstance(section, Mapping) else AUTO
        if enabled == AUTO or any(bool(enabled) == (precision == name) for precision in asked.precisions):
            continue
        trained = " or ".join(asked.precisions)
        other = name if enabled else "fp32"
        yield (
            f"{name}.enabled",
            enabled,
            f"the recipe trains in {trained}",
            f'"auto", or training.precision: {other}',
            "",
        )


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(node, Mapping):
        yield prefix, node
        return
    for key, item in node.items():
        yield from _leaves(item, f"{prefix}.{key}" if prefix else key)
