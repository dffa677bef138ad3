"""A model whose stages are on the ranks of a replica, called like the whole model: for answers, without an optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import send_to_device
from torch import nn

from finetune.distributed.engines.p2p import P2P
from finetune.distributed.engines.pipeline_model import examples_in
from finetune.distributed.session import Session
from finetune.models.parts import Parts
from finetune.models.stages import Stages

MICRO_BATCHES = 4  # of a batch, for each stage: with p stages, each is idle for (p - 1) / (5 p - 1) of the time at best


class StagedModel(nn.Module):
    """All ranks of the replica call it with the same batch, in evaluation mode, and all of them get its outputs.

    The batch is cut into micro-batches, which follow each other through the stages: while a stage computes one, the stage
    before it computes the next.
    """

    def __init__(self, stages: Stages | Parts, session: Session) -> None:
        """Keeps this rank's stage, on its device, and frees the others. All ranks of the process group call it at once."""
        super().__init__()
        self.stages, self.stage = stages, session.rank % session.replica_size
        stages.keep(self.stage)
        self.module = stages.model._apply(lambda tensor: tensor if tensor.is_meta else tensor.to(session.device))
        self.p2p, self.device = P2P(session), session.device

    def forward(self, **inputs: Any) -> Any:
        """The outputs of the model; of them, the tensors [examples, ...], and the loss if there are targets. All ranks of the
        replica call it, with the same inputs.
        """
        is_last, found = self.stage == len(self.stages) - 1, []
        for part in cut_batch(inputs, MICRO_BATCHES * len(self.stages)):
            received = self.p2p.take_activation(examples_in(part)) if self.stage else None
            result = self.stages.run(self.stage, received, partial(self.module, **part))
            if is_last:
                found.append(result)
            else:
                self.p2p.give_activation(result)
        self.p2p.finish()
        box = [send_to_device(join_outputs(found), "cpu") if is_last else None]
        dist.broadcast_object_list(box, src=self.p2p.last_rank, group=self.p2p.replica)
        return send_to_device(box[0], self.device)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Those of this stage."""
        return (parameter for parameter in super().parameters(recurse) if not parameter.is_meta)


def cut_batch(inputs: dict[str, Any], most: int) -> list[dict[str, Any]]:
    """The inputs in `most` micro-batches that differ by one example at most; in fewer, of one example each, if there are
    fewer examples. Inputs with lists, the targets of detectors, stay one: their loss is one of the outputs.
    """
    examples = examples_in(inputs)
    count = 1 if any(isinstance(value, list) for value in inputs.values()) else min(most, examples)
    bounds = [examples * number // count for number in range(count + 1)]
    return [
        {key: value[begin:end] if torch.is_tensor(value) else value for key, value in inputs.items()}
        for begin, end in pairwise(bounds)
    ]


def join_outputs(parts: list[Any]) -> Any:
    """The outputs of micro-batches as those of the batch. parts: mappings of transformers, of which the tensors are kept, and
    where there is one micro-batch the loss.
    """
    first, sizes = parts[0], [len(part["logits"]) for part in parts]
    if len(parts) == 1:
        return type(first)(
            **{key: value for key, value in first.items() if torch.is_tensor(value) or key == "loss_dict"}
        )
    kept = [
        key for key, value in first.items() if torch.is_tensor(value) and _by_example([p[key] for p in parts], sizes)
    ]
    return type(first)(**{key: torch.cat([part[key] for part in parts]) for key in kept})


def _by_example(tensors: list[torch.Tensor], sizes: list[int]) -> bool:
    """Whether tensors of micro-batches have one entry for each example: some detectors also give [layers, examples, ...]."""
    shapes = {tensor.shape[1:] for tensor in tensors}
    return [len(tensor) if tensor.dim() else -1 for tensor in tensors] == sizes and len(shapes) == 1
