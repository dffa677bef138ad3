"""Splits a model into pipeline stages of whole blocks, each of which can run in a process of its own. Knows no ranks.

The module keeps its structure and the names of its weights. The `forward` of every block is wrapped: blocks of earlier
stages return the received tensor instead of computing, and the first block of a later stage ends the forward pass. The
code around the blocks (masks, pooling, the head) runs unchanged. Weights of other stages become tensors on the `meta`
device, which use no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from finetune.errors import UserError
from finetune.models.blocks import Block, Run, find_blocks, first_tensor
from finetune.units import format_count

PIPELINE_KEY = "parallel.pipeline"


@dataclass(frozen=True)
class Stage:
    """The blocks [first, end).

    share: fraction of the floating-point operations of the forward pass. weights: number of parameter elements.
    """

    first: int
    end: int
    share: float
    weights: int
    label: str  # "resnet.embedder.embedder.convolution to resnet.encoder.stages.0.layers.1"


class _StageEnd(Exception):
    """Raised to end the forward pass at the first block of a later stage. activation: the input of this block."""

    def __init__(self, activation: torch.Tensor) -> None:
        super().__init__()
        self.activation = activation


class Stages:
    """A model whose blocks are wrapped so that stages can run alone. `run` runs one stage; `keep` frees all others.

    stages: [first, end) of each. total: floating-point operations of the forward pass. owners: name -> stage.
    """

    def __init__(
        self, model: nn.Module, blocks: Sequence[Block], stages: Sequence[tuple[int, int]], total: int
    ) -> None:
        self.model, self.blocks = model, blocks
        self._first, self._end, self._received = 0, len(blocks), None
        self.owners = _owners(model, blocks, stages)
        self.stages = [self._describe(number, *bounds, total) for number, bounds in enumerate(stages)]
        for index, block in enumerate(blocks):
            block.module.forward = self._wrap(index, block.module)  # type: ignore[method-assign]

    def __len__(self) -> int:
        return len(self.stages)

    def run(self, number: int, received: Any, call: Callable[[], Any]) -> Any:
        """Run `call`, a forward pass of the model, as stage `number`.

        Returns the outputs of the model for the last stage, otherwise the tensor that the next stage receives.
        received: the tensor that the previous stage returned; None for the first stage.
        """
        stage = self.stages[number]
        self._first, self._received = stage.first, received
        self._end = stage.end if number < len(self) - 1 else len(self.blocks)
        try:
            return call()
        except _StageEnd as stage_end:
            return stage_end.activation
        finally:
            self._first, self._end, self._received = 0, len(self.blocks), None

    def keep(self, number: int) -> None:
        """Replace weights and persistent buffers of all other stages by `meta` tensors of the same names and shapes."""
        keep_weights(self.model, {name for name, owner in self.owners.items() if owner == number})

    def describe(self) -> list[str]:
        """What each stage holds, a line each, for people."""
        return [
            f"stage {number} of {len(self)}: {stage.label}, {stage.share:.0%} of the cost, "
            f"{format_count(stage.weights)} parameters"
            for number, stage in enumerate(self.stages, start=1)
        ]

    def _wrap(self, index: int, module: nn.Module) -> Callable[..., Any]:
        original = module.__dict__.get("forward")  # a forward set on this instance

        def forward(*args: Any, **kwargs: Any) -> Any:
            if index >= self._end:
                raise _StageEnd(first_tensor(args, kwargs))
            if index < self._first:
                return self._received if index == 0 else first_tensor(args, kwargs)
            return original(*args, **kwargs) if original else type(module).forward(module, *args, **kwargs)

        return forward

    def _describe(self, number: int, first: int, end: int, total: int) -> Stage:
        cost = sum(block.cost for block in self.blocks[first:end])
        if end == len(self.blocks):
            cost += total - sum(block.cost for block in self.blocks)
        names = [self.blocks[first].name, self.blocks[end - 1].name]
        owned = [p.numel() for name, p in self.model.named_parameters() if self.owners[name] == number]
        return Stage(first, end, cost / max(total, 1), sum(owned), " to ".join(dict.fromkeys(names)))


def split_model(model: nn.Module, run: Run, count: int, *, key: str = PIPELINE_KEY) -> Stages:
    """Split the model into `count` stages whose costs are as equal as its blocks allow.

    run: a forward pass on at least two examples, used to find the blocks and to check that running the stages one after
    the other gives the outputs of the whole model. key: what asked for the stages, a key of the recipe or an option.
    Raises: UserError if the model has fewer than `count` blocks, passes more than one tensor between stages, shares a
    weight between stages, or has a stage without trainable weights.
    """
    blocks, total = find_blocks(model, run)
    if len(blocks) < count:
        raise UserError(
            f"the model has {len(blocks)} consecutive block{'s' * (len(blocks) != 1)}, too few for {count} stages",
            where=key,
            remedy=f"Set {key} to at most {len(blocks)}."
            if len(blocks) > 1
            else f"Remove {key}: this model cannot be split.",
        )
    rest = total - sum(block.cost for block in blocks)
    stages = Stages(model, blocks, cut_evenly(blocks, count, rest, key=key), total)
    _check_weights(stages, key)
    _check_outputs(stages, run, key)
    return stages


def cut_evenly(blocks: Sequence[Block], count: int, rest: int = 0, *, key: str = PIPELINE_KEY) -> list[tuple[int, int]]:
    """[first, end) of each stage. Minimizes the cost of the costliest stage, then the sizes of the tensors sent.

    rest: cost of the operations after the last block. The model is never split before a block that modifies its input
    in place, and all stages except the last one, which has the head, get trainable weights.
    Raises: UserError if there is no such split.
    """
    sums, trainable = [0], [0]  # cumulative cost, and number of trainable blocks
    for block in blocks:
        sums.append(sums[-1] + block.cost)
        trainable.append(trainable[-1] + block.trainable)
    sums[-1] += rest
    best: list[dict[int, tuple[int, int, tuple[int, ...]]]] = [
        {0: (0, 0, ())}
    ]  # best[stages][end] is (cost of the costliest stage, elements sent, ends)
    for stage in range(1, count + 1):
        by_end: dict[int, tuple[int, int, tuple[int, ...]]] = {}
        for end in range(stage, len(blocks) + 1) if stage < count else [len(blocks)]:
            if end < len(blocks) and blocks[end].in_place:
                continue
            sent = blocks[end - 1].size if end < len(blocks) else 0
            options = [
                (max(costliest, sums[end] - sums[start]), sent_before + sent, (*ends, end))
                for start, (costliest, sent_before, ends) in best[-1].items()
                if start < end and (trainable[start] < trainable[end] or stage == count)
            ]
            if options:
                by_end[end] = min(options)
        best.append(by_end)
    if len(blocks) not in best[-1]:
        raise UserError(
            f"the model cannot be split into {count} stages that all have trainable weights",
            where=key,
            remedy=f"Reduce {key}, or freeze fewer weights." if key == PIPELINE_KEY else f"Reduce {key}.",
        )
    ends = best[-1][len(blocks)][2]
    return list(zip((0, *ends[:-1]), ends, strict=True))


def _owners(model: nn.Module, blocks: Sequence[Block], stages: Sequence[tuple[int, int]]) -> dict[str, int]:
    """{name in the state dict: stage that holds it}. Weights outside of all blocks belong to the last stage."""
    stage_of = {blocks[index].name: number for number, (first, end) in enumerate(stages) for index in range(first, end)}
    owners = {}
    for name in model.state_dict():
        parts = name.split(".")
        parents = (".".join(parts[:depth]) for depth in range(len(parts), 0, -1))
        owners[name] = next((stage_of[parent] for parent in parents if parent in stage_of), len(stages) - 1)
    return owners


def _check_weights(stages: Stages, key: str) -> None:
    """Check that every stage has trainable weights, and that no weight is in two stages. Raises: UserError."""
    stage_of_weight: dict[int, int] = {}
    trained = set()
    for name, parameter in stages.model.named_parameters(remove_duplicate=False):
        owner = stages.owners[name]
        if stage_of_weight.setdefault(id(parameter), owner) != owner:
            raise UserError(f"the weight {name} is shared by two stages", where=key, remedy=f"Remove {key}.")
        if parameter.requires_grad:
            trained.add(owner)
    for number, stage in enumerate(stages.stages):
        if number not in trained:
            raise UserError(
                f"stage {number + 1} of {len(stages)} ({stage.label}) has no trainable weights",
                where=key,
                remedy=f"Remove {key} (frozen layers need no memory for gradients), or freeze fewer weights.",
            )


def _check_outputs(stages: Stages, run: Run, key: str) -> None:
    """Check that the stages give the outputs of the whole model: only one tensor may pass between them.

    Raises: UserError if they do not.
    """
    model, training = stages.model, [module.training for module in stages.model.modules()]
    model.eval()
    with torch.no_grad():
        whole = run(model)
        output: Any = None
        for number in range(len(stages)):
            output = stages.run(number, output, lambda: run(model))
    for module, mode in zip(model.modules(), training, strict=True):
        module.training = mode
    pairs = list(zip(_tensors(whole), _tensors(output), strict=False))
    if not pairs or not all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in pairs):
        raise UserError(
            "the layers of the model pass on more than one tensor, so the model cannot be split between them",
            where=key,
            remedy=f"Remove {key}."
            + (" ZeRO-3 (parallel.deepspeed: zero3) shards the weights of any model." if key == PIPELINE_KEY else ""),
        )


def _tensors(outputs: Any) -> list[torch.Tensor]:
    values = outputs.values() if hasattr(outputs, "values") and not torch.is_tensor(outputs) else [outputs]
    return [value for value in values if torch.is_tensor(value)]


def keep_weights(model: nn.Module, names: Container[str]) -> None:
    """Replace the weights and persistent buffers that are not among `names` by `meta` tensors of the same names and shapes."""
    persistent = model.state_dict().keys()
    for prefix, module in model.named_modules():
        for tensors in (module._parameters, module._buffers):
            for key, tensor in tensors.items():
                name = f"{prefix}.{key}" if prefix else key
                if tensor is None or name not in persistent or name in names:
                    continue
                placeholder: torch.Tensor = tensor.detach().to("meta")
                if isinstance(tensor, nn.Parameter):
                    placeholder = nn.Parameter(placeholder, requires_grad=tensor.requires_grad)
                tensors[key] = placeholder  # type: ignore[assignment]
