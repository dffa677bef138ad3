"""A model cut into stages of whole blocks, each of which one process can run and hold by itself. Knows no ranks.

The module keeps its shape and the names of its weights. A block's `forward` goes through a gate: blocks of stages before
this one hand on what was received instead of computing it, the first block of a later stage ends the forward pass. So the
code around the blocks (masks, pooling, the head) runs as its authors wrote it. Weights of other stages become tensors on
the `meta` device, which take no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from finetune.errors import UserError
from finetune.models.blocks import Block, Run, find_blocks, flowing

KEY = "parallel.pipeline"


@dataclass(frozen=True)
class Stage:
    """Blocks [first, end). share: of the forward pass's floating-point operations. weights: elements of parameters."""

    first: int
    end: int
    share: float
    weights: int
    label: str  # "resnet.embedder.embedder.convolution to resnet.encoder.stages.0.layers.1"


class _Cut(Exception):
    """The first block of a later stage was reached."""

    def __init__(self, activation: torch.Tensor) -> None:
        super().__init__()
        self.activation = activation


class Stages:
    """A model whose blocks are gated. `run` runs one stage; `keep` lets go of all others."""

    def __init__(
        self, model: nn.Module, blocks: Sequence[Block], stages: Sequence[tuple[int, int]], total: int
    ) -> None:
        self.model, self.blocks = model, blocks
        self._first, self._end, self._received = 0, len(blocks), None
        self.owners = _owners(model, blocks, stages)
        self.stages = [self._describe(number, *bounds, total) for number, bounds in enumerate(stages)]
        for index, block in enumerate(blocks):
            block.module.forward = self._gate(index, block.module)  # type: ignore[method-assign]

    def __len__(self) -> int:
        return len(self.stages)

    def run(self, number: int, received: Any, call: Callable[[], Any]) -> Any:
        """What `call`, a forward pass of the model, gives as stage `number`: the model's outputs for the last stage, else
        the tensor that the next stage receives. received: what the stage before gave; None for the first.
        """
        stage = self.stages[number]
        self._first, self._received = stage.first, received
        self._end = stage.end if number < len(self) - 1 else len(self.blocks)
        try:
            return call()
        except _Cut as cut:
            return cut.activation
        finally:
            self._first, self._end, self._received = 0, len(self.blocks), None

    def keep(self, number: int) -> None:
        """Weights and persistent buffers of all other stages become `meta` tensors; names and shapes stay."""
        persistent = self.model.state_dict().keys()
        for prefix, module in self.model.named_modules():
            for held in (module._parameters, module._buffers):
                for key, tensor in held.items():
                    name = f"{prefix}.{key}" if prefix else key
                    if tensor is None or name not in persistent or self.owners[name] == number:
                        continue
                    hollow: torch.Tensor = tensor.detach().to("meta")
                    if isinstance(tensor, nn.Parameter):
                        hollow = nn.Parameter(hollow, requires_grad=tensor.requires_grad)
                    held[key] = hollow  # type: ignore[assignment]

    def _gate(self, index: int, module: nn.Module) -> Callable[..., Any]:
        own = module.__dict__.get("forward")  # one that was put on this very module

        def forward(*args: Any, **kwargs: Any) -> Any:
            if index >= self._end:
                raise _Cut(flowing(args, kwargs))
            if index < self._first:
                return self._received if index == 0 else flowing(args, kwargs)
            return own(*args, **kwargs) if own else type(module).forward(module, *args, **kwargs)

        return forward

    def _describe(self, number: int, first: int, end: int, total: int) -> Stage:
        cost = sum(block.cost for block in self.blocks[first:end])
        if end == len(self.blocks):
            cost += total - sum(block.cost for block in self.blocks)
        names = [self.blocks[first].name, self.blocks[end - 1].name]
        owned = [p.numel() for name, p in self.model.named_parameters() if self.owners[name] == number]
        return Stage(first, end, cost / max(total, 1), sum(owned), " to ".join(dict.fromkeys(names)))


def split_model(model: nn.Module, run: Run, count: int) -> Stages:
    """Cut the model into `count` stages, as equal in cost as its blocks allow.

    run: a forward pass on at least two examples, for finding the blocks and for proving the cuts: the stages one after
    the other must give what the whole model gave.
    Raises: UserError for a model without so many blocks, or that needs more across a cut than one tensor.
    """
    blocks, total = find_blocks(model, run)
    if len(blocks) < count:
        raise UserError(
            f"the model has {len(blocks)} blocks that follow one another, which do not make {count} stages",
            where=KEY,
            remedy=f"at most {KEY}: {len(blocks)}" if len(blocks) > 1 else f"leave out {KEY}: this model cannot be cut",
        )
    rest = total - sum(block.cost for block in blocks)
    stages = Stages(model, blocks, cut_evenly(blocks, count, rest), total)
    _check_weights(stages)
    _check_outputs(stages, run)
    return stages


def cut_evenly(blocks: Sequence[Block], count: int, rest: int = 0) -> list[tuple[int, int]]:
    """[first, end) of each stage: the dearest stage as cheap as can be, then the least to send.

    rest: cost of what follows the last block. Never a cut before a block that writes over its input, and no stage but
    the last (which has the head) without a weight to train.
    Raises: UserError if it cannot be cut so.
    """
    sums, learning = [0], [0]
    for block in blocks:
        sums.append(sums[-1] + block.cost)
        learning.append(learning[-1] + block.learns)
    sums[-1] += rest
    best: list[dict[int, tuple[int, int, tuple[int, ...]]]] = [
        {0: (0, 0, ())}
    ]  # stages -> end -> (dearest, sent, cuts)
    for stage in range(1, count + 1):
        found: dict[int, tuple[int, int, tuple[int, ...]]] = {}
        for end in range(stage, len(blocks) + 1) if stage < count else [len(blocks)]:
            if end < len(blocks) and blocks[end].in_place:
                continue
            sent = blocks[end - 1].size if end < len(blocks) else 0
            options = [
                (max(costliest, sums[end] - sums[start]), before + sent, (*cuts, end))
                for start, (costliest, before, cuts) in best[-1].items()
                if start < end and (learning[start] < learning[end] or stage == count)
            ]
            if options:
                found[end] = min(options)
        best.append(found)
    if len(blocks) not in best[-1]:
        raise UserError(
            f"the model cannot be cut into {count} stages that each have weights to train",
            where=KEY,
            remedy=f"a smaller {KEY}, or freeze less",
        )
    ends = best[-1][len(blocks)][2]
    return list(zip((0, *ends[:-1]), ends, strict=True))


def _owners(model: nn.Module, blocks: Sequence[Block], stages: Sequence[tuple[int, int]]) -> dict[str, int]:
    """Name in the state dict -> the stage that holds it. What lies outside of all blocks belongs to the last."""
    stage_of = {blocks[index].name: number for number, (first, end) in enumerate(stages) for index in range(first, end)}
    owners = {}
    for name in model.state_dict():
        parts = name.split(".")
        homes = (".".join(parts[:depth]) for depth in range(len(parts), 0, -1))
        owners[name] = next((stage_of[home] for home in homes if home in stage_of), len(stages) - 1)
    return owners


def _check_weights(stages: Stages) -> None:
    """Every stage learns something, and no weight lives in two."""
    homes: dict[int, int] = {}
    trained = set()
    for name, parameter in stages.model.named_parameters(remove_duplicate=False):
        owner = stages.owners[name]
        if homes.setdefault(id(parameter), owner) != owner:
            raise UserError(f"the weight {name} is shared by two stages", where=KEY, remedy=f"leave out {KEY}")
        if parameter.requires_grad:
            trained.add(owner)
    for number, stage in enumerate(stages.stages):
        if number not in trained:
            raise UserError(
                f"stage {number + 1} of {len(stages)} ({stage.label}) has no weight to train",
                where=KEY,
                remedy=f"leave out {KEY} (frozen layers keep no gradients), or freeze less",
            )


def _check_outputs(stages: Stages, run: Run) -> None:
    """Stage after stage gives what the whole model gives; else something but the chain's tensor crosses a cut."""
    model, training = stages.model, [module.training for module in stages.model.modules()]
    model.eval()
    with torch.no_grad():
        whole = run(model)
        given: Any = None
        for number in range(len(stages)):
            given = stages.run(number, given, lambda: run(model))
    for module, mode in zip(model.modules(), training, strict=True):
        module.training = mode
    pairs = list(zip(_tensors(whole), _tensors(given), strict=False))
    if not pairs or not all(torch.allclose(one, other, rtol=1e-5, atol=1e-6) for one, other in pairs):
        raise UserError(
            "the model's layers pass on more than one tensor, so it cannot be cut between them",
            where=KEY,
            remedy=f"leave out {KEY}; ZeRO-3 (parallel.deepspeed: zero3) shares out the weights of any model",
        )


def _tensors(outputs: Any) -> list[torch.Tensor]:
    values = outputs.values() if hasattr(outputs, "values") and not torch.is_tensor(outputs) else [outputs]
    return [value for value in values if torch.is_tensor(value)]
