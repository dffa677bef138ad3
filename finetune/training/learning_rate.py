"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from finetune.recipe.training import TrainingSection


def warmup_steps(training: TrainingSection, total_steps: int) -> int:
    """A share of all steps if below 1, else steps."""
    return math.ceil(training.warmup * total_steps) if training.warmup < 1 else int(training.warmup)


def learning_rate(step: int, total_steps: int, training: TrainingSection) -> float:
    """For optimizer step `step` (0-based) of `total_steps`.

    linear and cosine fall from the peak to min_learning_rate at total_steps; inverse_sqrt is the Transformer's
    (Vaswani et al. 2017, section 5.3), continuous at the end of warmup.
    """
    peak, floor = training.learning_rate, training.min_learning_rate
    warmup = warmup_steps(training, total_steps)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    if training.schedule == "linear":
        return floor + (peak - floor) * (1 - done)
    if training.schedule == "cosine":
        return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * done))
    if training.schedule == "inverse_sqrt":
        return max(floor, peak * math.sqrt((warmup + 1) / (step + 1)))
    return peak
