"""The model of a pipeline as its users see it: called like the module itself, while each rank runs its stage alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import convert_outputs_to_fp32, send_to_device
from torch import nn

from finetune.distributed.engines.p2p import P2P
from finetune.distributed.session import Session
from finetune.models.stages import Stages


class PipelineModel(nn.Module):
    """The replica's model; a rank's call runs its stage.

    The last stage's call gives the model's outputs, the others' their activations. Within `fed`, the schedule moves
    activations; elsewhere (evaluation) each call takes its input from the stage before and passes on its result.
    """

    def __init__(self, stages: Stages, stage: int, p2p: P2P, session: Session) -> None:
        super().__init__()
        self.module, self.stages, self.stage, self.p2p = stages.model, stages, stage, p2p
        self._accelerator = session.accelerator
        self._fed: tuple[Any] | None = None

    def forward(self, **inputs: Any) -> Any:
        if self._fed is not None:
            return self._run(self._fed[0], inputs)
        received = self.p2p.take_activation(examples_in(inputs)) if self.stage else None
        result = self._run(received, inputs)
        if self.stage < len(self.stages) - 1:
            self.p2p.give_activation(result)
            self.p2p.finish()
        return result

    @contextmanager
    def fed(self, received: torch.Tensor | None) -> Iterator[None]:
        """Within, a call runs on what the schedule received, [examples, ...]; None on the first stage."""
        self._fed = (received if received is None else received.requires_grad_(),)
        try:
            yield
        finally:
            self._fed = None

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Those of this stage."""
        return (parameter for parameter in super().parameters(recurse) if not parameter.is_meta)

    def _run(self, received: Any, inputs: dict[str, Any]) -> Any:
        def call() -> Any:
            with self._accelerator.autocast():
                outputs = self.module(**inputs)
            return outputs if self._accelerator.mixed_precision == "no" else _in_fp32(outputs)

        return self.stages.run(self.stage, received, call)


class SharedOutputs(nn.Module):
    """The pipeline, whose last stage gives its outputs to all ranks of the replica. They all call it alike."""

    def __init__(self, model: PipelineModel, p2p: P2P) -> None:
        super().__init__()
        self.model, self.p2p, self.training = model, p2p, model.training

    def forward(self, **inputs: Any) -> Any:
        outputs = self.model(**inputs)
        is_last = self.model.stage == len(self.model.stages) - 1
        box = [send_to_device(outputs, "cpu") if is_last else None]
        dist.broadcast_object_list(box, src=self.p2p.last_rank, group=self.p2p.replica)
        return send_to_device(box[0], next(self.parameters()).device)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        return self.model.parameters(recurse)


def examples_in(inputs: dict[str, Any]) -> int:
    """Examples in a batch's inputs."""
    return next(len(value) for value in inputs.values() if torch.is_tensor(value))


def _in_fp32(outputs: Any) -> Any:
    return convert_outputs_to_fp32(lambda: outputs)()
