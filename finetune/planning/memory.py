"""Bytes that a rank needs for model states, by kind.

Source: Rajbhandari et al., ZeRO: Memory Optimizations Toward Training Trillion Parameter Models (2020), section 3 and
figure 1: with mixed precision 2 (weights) + 2 (gradients) + 12 (fp32 copy, Adam's two moments) bytes per parameter,
divided over the ranks stage by stage. In fp32 the weights are their own master copy until ZeRO partitions them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from finetune.recipe.optimizers import OPTIMIZERS


@dataclass(frozen=True)
class StateBytes:
    """Bytes a rank holds on its device, and off it where the configuration offloads."""

    weights: int
    gradients: int
    master_weights: int
    optimizer: int
    offloaded: int

    @property
    def on_device(self) -> int:
        return self.weights + self.gradients + self.master_weights + self.optimizer

    def to_dict(self) -> dict[str, int]:
        return {**asdict(self), "on_device": self.on_device}


def state_bytes(
    parameters: int,
    trainable: int,
    *,
    ranks: int,
    stage: int,
    precision: str,
    optimizer: str,
    engine: bool,
    offload_optimizer: bool = False,
    offload_param: bool = False,
    frozen_bytes: int | None = None,
) -> StateBytes:
    """Model states on one rank. engine: a DeepSpeed engine (keeps an fp32 master copy even of fp32 weights).

    frozen_bytes: of the weights that do not train, where they are packed (4 or 8 bits).
    """
    half = precision in ("bf16", "fp16") and engine
    weight_size = 2 if half else 4
    share = ranks if stage >= 1 else 1
    weights = parameters * weight_size // (ranks if stage == 3 else 1)
    if frozen_bytes is not None:
        weights = frozen_bytes + trainable * weight_size
    gradients = trainable * weight_size // (ranks if stage >= 2 else 1)
    master = trainable * 4 // share if engine and (half or stage >= 1) else 0
    moments = int(trainable * OPTIMIZERS[optimizer].state_bytes) // share
    offloaded = 0
    if offload_optimizer:
        offloaded, master, moments = offloaded + master + moments, 0, 0
    if offload_param:
        offloaded, weights = offloaded + weights, 0
    return StateBytes(weights, gradients, master, moments, offloaded)
