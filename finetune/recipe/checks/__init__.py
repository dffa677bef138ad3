"""Contradictions in a recipe whose values are each valid: one small function for each, in one file per subject."""

from __future__ import annotations

from finetune.errors import Fault
from finetune.recipe.checks.context import Check, CheckContext
from finetune.recipe.checks.data import check_columns, check_packing, check_validation
from finetune.recipe.checks.deepspeed import check_deepspeed
from finetune.recipe.checks.evaluation import check_metrics
from finetune.recipe.checks.machine import (
    check_compiler,
    check_files,
    check_float8_machine,
    check_kernels,
    check_optimizer,
    check_precision,
    check_trackers,
)
from finetune.recipe.checks.model import (
    check_compile,
    check_float8,
    check_init_device,
    check_light_checkpointing,
    check_model,
    check_quantization,
)
from finetune.recipe.checks.parallel import (
    check_batch,
    check_engine,
    check_master_weights,
    check_pipeline,
    check_split,
    check_tensor,
)
from finetune.recipe.checks.training import (
    check_label_smoothing,
    check_learning_rate,
    check_length,
    check_whole_parameters,
)

RECIPE_CHECKS: tuple[Check, ...] = (
    check_model,
    check_length,
    check_learning_rate,
    check_whole_parameters,
    check_batch,
    check_split,
    check_quantization,
    check_compile,
    check_light_checkpointing,
    check_float8,
    check_engine,
    check_tensor,
    check_pipeline,
    check_init_device,
    check_master_weights,
    check_label_smoothing,
    check_packing,
    check_metrics,
    check_validation,
    check_columns,
    check_deepspeed,
)
MACHINE_CHECKS: tuple[Check, ...] = (
    check_files,
    check_precision,
    check_kernels,
    check_float8_machine,
    check_compiler,
    check_optimizer,
    check_trackers,
)


def find_contradictions(context: CheckContext, *, here: bool) -> list[Fault]:
    """Every contradiction. here: also what this machine lacks, such as a file, or CUDA for fp16."""
    checks = RECIPE_CHECKS + MACHINE_CHECKS if here else RECIPE_CHECKS
    return [fault for check in checks for fault in check(context)]
