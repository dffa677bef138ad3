"""A training step of ResNet-50 and ViT-B on an H100, ours beside the plain loop of `picture_peer.py`: estimated, not run.

    python -m benchmarks.gpu.picture_roofline [--batch 128] [--top 12]

As in `roofline.py`, by operators on tensors without values. Both sides have float32 weights under autocast; ours has the real
engine and the real task, from bytes with the channels innermost. What a kernel does inside is not seen: cuDNN's convolutions
turn pixels of the plain loop, whose channels are outermost, to the layout of tensor cores and back, which is not counted.
"""

from __future__ import annotations

import argparse
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForImageClassification

from benchmarks.counting import GIB, fake_model
from benchmarks.gpu.operator_costs import H100, Costs, Total
from benchmarks.gpu.roofline import _session, differences
from benchmarks.gpu.stand_ins import on_a_gpu
from finetune.distributed.engines.ddp import DdpEngine
from finetune.distributed.engines.engine import EngineOptions
from finetune.recipe.training import TrainingSection
from finetune.tasks.batch import Batch
from finetune.tasks.class_outputs import classification_loss_sum
from finetune.tasks.vision.levels import pixel_values
from finetune.training.parameter_groups import make_optimizer

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet-50": ("resnet", {}),
    "vit-b": ("vit", {"image_size": 224, "patch_size": 16}),
}
SIZE, CLASSES = 224, 10
SIDES = ("ours", "plain loop")


def main() -> None:
    """See the head of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--top", type=int, default=12, help="operators whose time differs most")
    asked = parser.parse_args()
    print("Estimated for an H100 by a roofline, not run on one.")
    for name in MODELS:
        totals = {side: estimate(name, side, asked.batch) for side in SIDES}
        print(f"\n{name}: {asked.batch} images a step\n\n| side | ms | images/s | GB moved | launches | peak GiB |")
        print("|---|---|---|---|---|---|")
        for side, total in totals.items():
            line, seconds = total.sum()
            cells = f"{seconds * 1e3:.1f} | {asked.batch / seconds:,.0f} | {line.bytes / 1e9:,.0f} | {line.launches:,}"
            print(f"| {side} | {cells} | {total.peak / GIB:.1f} |")
        print("", differences(totals["ours"], totals[SIDES[1]], asked.top, peer=SIDES[1]), sep="\n", flush=True)


def estimate(name: str, side: str, batch: int) -> Total:
    """One optimizer step, the second: the first makes the optimizer's state."""
    mode, total = FakeTensorMode(), Total(H100)
    with on_a_gpu(), mock.patch("finetune.tasks.vision.levels._is_on_gpu", lambda pixels: True):
        kind, values = MODELS[name]
        config = AutoConfig.for_model(kind, num_labels=CLASSES, **values)
        model: Any = fake_model(
            mode, lambda: AutoModelForImageClassification.from_config(config), torch.float32
        ).train()
        with mode:
            step: Any = (_Ours if side == "ours" else _Plain)(model, batch)
            for _ in range(2):
                costs = Costs()
                costs.hold(*model.parameters(), *model.buffers(), *step.held())
                with costs:
                    step.run()
    total.add(costs)
    return total


class _Ours:
    """The real engine of one rank, and what the task does with a batch."""

    def __init__(self, model: Any, batch: int) -> None:
        training = TrainingSection(learning_rate=1e-4, global_batch=batch, max_grad_norm=1.0, epochs=1)
        model.to = lambda device: model  # it is there
        options = EngineOptions(max_grad_norm=1.0)
        self.engine = DdpEngine(_session(), model, lambda module: make_optimizer(module, training, "adamw"), options)
        levels = torch.zeros(batch, SIZE, SIZE, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
        inputs = {"pixel_values": levels, "pixel_table": torch.zeros(3, 256)}
        self.batch = Batch((0,), inputs, {"labels": torch.zeros(batch, dtype=torch.int64)})

    def held(self) -> list[torch.Tensor]:
        """Beside weights and buffers."""
        return _held(self.engine.inner_optimizer)

    def run(self) -> None:
        """Forward and backward pass, and the update."""
        self.engine.accumulate(
            [self.batch],
            lambda batch: self.engine.model(**pixel_values(batch.inputs, torch.float32)),
            lambda outputs, batch, dummy: classification_loss_sum(
                outputs.logits, batch.targets["labels"], label_smoothing=0.0
            ),
            lambda: 1.0 / len(self.batch.targets["labels"]),
        )
        self.engine.step()


class _Plain:
    """As `picture_peer.py` does it."""

    def __init__(self, model: Any, batch: int) -> None:
        self.model, self.optimizer = model, torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        self.pixels, self.labels = torch.zeros(batch, 3, SIZE, SIZE), torch.zeros(batch, dtype=torch.int64)

    def held(self) -> list[torch.Tensor]:
        """Beside weights and buffers."""
        return [self.pixels, *_held(self.optimizer)]

    def run(self) -> None:
        """Forward and backward pass, and the update."""
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.model(pixel_values=self.pixels, labels=self.labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def _held(optimizer: Any) -> list[torch.Tensor]:
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]


if __name__ == "__main__":
    main()
