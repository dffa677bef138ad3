"""DeepSpeed's fused optimisers by the recipe's names."""

from __future__ import annotations

from typing import Any

import torch

from finetune.errors import UserError


def make_deepspeed_optimizer(
    name: str, groups: list[dict[str, Any]], *, learning_rate: float, betas: tuple[float, float], epsilon: float
) -> torch.optim.Optimizer:
    """deepspeed_adam (FusedAdam, CUDA), deepspeed_cpu_adam (states on the CPU), deepspeed_lion (FusedLion, CUDA).

    Raises: UserError where the machine cannot build it.
    """
    if name == "deepspeed_cpu_adam":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, lr=learning_rate, betas=betas, eps=epsilon, adamw_mode=True)
    if not torch.cuda.is_available():
        raise UserError(f"{name} needs CUDA", where="training.optimizer", remedy="use adamw or deepspeed_cpu_adam here")
    if name == "deepspeed_adam":
        from deepspeed.ops.adam import FusedAdam

        return FusedAdam(groups, lr=learning_rate, betas=betas, eps=epsilon, adam_w_mode=True)
    if name == "deepspeed_lion":
        from deepspeed.ops.lion import FusedLion

        return FusedLion(groups, lr=learning_rate, betas=betas)
    raise ValueError(f"{name} is not one of DeepSpeed's optimisers here")
