"""Splits a model where several tensors cross the cut: the backbone, encoder and decoder of a detector. Knows no ranks.

A forward pass can be cut after the call of a module if all that later operations read of what was computed before is in the
output of that call, whatever its structure, or comes from the inputs and weights through code outside of finished calls (a
mask of ones, position embeddings), which every stage runs. So a stage is the whole forward pass, in which the calls before
its first cut give placeholders, the call at that cut gives what was received, and the call at its last cut ends the pass.
Placeholders are NaN: a value that would be missed shows in the outputs, which are compared with those of the whole model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from finetune.errors import UserError
from finetune.models.blocks import Block
from finetune.models.dataflow import Call, Dataflow, TensorSpec, map_tensors, memory_of, tensors_in, watch
from finetune.models.stages import cut_evenly, keep_weights
from finetune.units import format_count

EXAMPLES = 2  # of the forward pass that is watched
Run = Callable[[nn.Module, int], Any]
"""A forward pass of a model on so many examples, always the same ones, in evaluation mode; its outputs."""


class _PartEnd(Exception):
    """Ends a forward pass at the end of a stage. output: what the call at the cut gave."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


class Parts:
    """A model of which stages can run alone, as `Stages` are, but with a tuple of tensors between them.

    cuts: indices of the calls after which the forward pass is cut, in order.
    """

    def __init__(self, model: nn.Module, flow: Dataflow, cuts: Sequence[int]) -> None:
        self.model, self.flow, self.cuts = model, flow, list(cuts)
        self.held = [_weights_of(model, flow, self._bounds(number)) for number in range(len(self))]
        self._given: dict[int, Any] = {}  # by the identity of a module: what its call gives
        self._last: int | None = None
        wrapped = {call for cut in self.cuts for call in finished_calls(flow, cut)}
        modules = [flow.calls[call].module for call in sorted(wrapped)]
        self._wrapped = [(module, module.__dict__.get("forward")) for module in modules]  # what is set on the instance
        for module in modules:
            module.forward = self._wrap(module)  # type: ignore[method-assign]

    def __len__(self) -> int:
        return len(self.cuts) + 1

    def run(self, number: int, received: tuple[torch.Tensor, ...] | None, call: Callable[[], Any]) -> Any:
        """Run `call`, a forward pass of the model, as stage `number`.

        Returns the outputs of the model for the last stage, otherwise the tensors that the next stage receives.
        received: those that the previous stage returned; None for the first stage.
        """
        calls = self.flow.calls
        if number:
            assert received is not None
            given, cut = iter(received), self.cuts[number - 1]
            for index in finished_calls(self.flow, cut):
                if index != cut:
                    self._given[id(calls[index].module)] = _placeholders(calls[index].output, received[0])
            self._given[id(calls[cut].module)] = map_tensors(calls[cut].output, lambda _: next(given))
        self._last = id(calls[self.cuts[number]].module) if number < len(self.cuts) else None
        try:
            return call()
        except _PartEnd as end:
            return tuple(tensors_in(end.output))
        finally:
            self._given, self._last = {}, None

    def restore(self) -> None:
        """Take the wrapping away again."""
        for module, forward in self._wrapped:
            if forward is None:
                del module.forward
            else:
                module.forward = forward  # type: ignore[method-assign]

    def keep(self, number: int) -> None:
        """Replace the weights and persistent buffers that the stage does not use by `meta` tensors of the same names."""
        keep_weights(self.model, self.held[number])

    def describe(self) -> list[str]:
        """What each stage holds, a line each, for people."""
        calls, lines = self.flow.calls, []
        costs = [0, *(calls[cut].cost for cut in self.cuts), calls[0].cost]
        sizes = {name: weight.numel() for name, weight in self.model.named_parameters(remove_duplicate=False)}
        for number in range(len(self)):
            after = f"after {calls[self.cuts[number - 1]].name}" if number else ""
            until = f"to the end of {calls[self.cuts[number]].name}" if number < len(self.cuts) else ""
            share = (costs[number + 1] - costs[number]) / max(costs[-1], 1)
            weights = sum(sizes.get(name, 0) for name in self.held[number])
            label = " ".join(filter(None, (after, until)))
            lines.append(
                f"stage {number + 1} of {len(self)}: {label}, {share:.0%} of the cost, {format_count(weights)} parameters"
            )
        return lines

    def _bounds(self, number: int) -> tuple[int | None, int | None]:
        return self.cuts[number - 1] if number else None, self.cuts[number] if number < len(self.cuts) else None

    def _wrap(self, module: nn.Module) -> Callable[..., Any]:
        original = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if id(module) in self._given:
                return self._given[id(module)]
            output = original(*args, **kwargs)
            if id(module) == self._last:
                raise _PartEnd(output)
            return output

        return forward


def split_parts(model: nn.Module, run: Run, count: int, *, key: str) -> Parts:
    """Split the model into `count` stages whose costs are as equal as its cuts allow.

    run: see Run; it finds the cuts and checks that the stages one after the other give the outputs of the whole model, also
    for fewer examples. key: the option that asked for the stages.
    Raises: UserError if the model has fewer than `count` - 1 cuts.
    """
    with torch.no_grad():
        run(model, EXAMPLES)  # what a model computes once and keeps is there before it is watched
        flow = watch(model, lambda: run(model, EXAMPLES))
        cuts = find_cuts(flow)
        while len(cuts) >= count - 1:
            chosen = _choose(flow, cuts, count, key)
            wrong = [cut for cut in chosen if not _is_right(model, flow, [cut], run)]
            if not wrong and (len(chosen) == 1 or _is_right(model, flow, chosen, run)):
                return Parts(model, flow, chosen)
            cuts = [cut for cut in cuts if cut not in (wrong or chosen)]
    most = len(cuts) + 1
    raise UserError(
        f"the model can be cut into {most} stage{'s' * (most != 1)}, too few for {count}",
        where=key,
        remedy=f"Set {key} to at most {most}." if most > 1 else f"Remove {key}: this model cannot be split.",
    )


def find_cuts(flow: Dataflow) -> list[int]:
    """The calls after which the forward pass can be cut, by what is read and written, in order."""
    times = Counter(id(call.module) for call in flow.calls)
    total = flow.calls[0].cost
    made, used = dict[int, int](), dict[int, int]()  # memory: when it was first written, and last read
    for operation in flow.operations:
        for place in operation.writes:
            made.setdefault(place, operation.time)
        used |= dict.fromkeys(operation.reads, operation.time)
    used |= dict.fromkeys(flow.calls[0].made, flow.calls[0].end)
    cuts = []
    for index, call in sorted(enumerate(flow.calls), key=lambda one: one[1].end):
        tensors = _specs(call.output)
        if not 0 < call.cost < total or not tensors or any(spec.shape[:1] != (EXAMPLES,) for spec in tensors):
            continue
        finished = [flow.calls[one] for one in finished_calls(flow, index)]
        if any(times[id(one.module)] > 1 or one.output is None for one in finished):
            continue
        crossing = {place for place, time in made.items() if time < call.end < used.get(place, 0)} - call.made
        if _can_be_computed(flow, crossing, call.end):
            cuts.append(index)
    by_cost: dict[int, list[int]] = {}  # a stage of no cost is none
    for cut in cuts:
        by_cost.setdefault(flow.calls[cut].cost, []).append(cut)
    return [min(equal, key=lambda cut: _sent(flow.calls[cut])) for equal in by_cost.values()]


def finished_calls(flow: Dataflow, cut: int) -> list[int]:
    """The outermost calls that have ended when the call `cut` ends, with itself."""
    time = flow.calls[cut].end
    return [
        index
        for index, call in enumerate(flow.calls)
        if call.end <= time and call.parent >= 0 and flow.calls[call.parent].end > time
    ]


def _can_be_computed(flow: Dataflow, wanted: set[int], time: int) -> bool:
    """Whether memory that was written before a time can be written again by operations outside of finished calls."""
    if not wanted:
        return True
    writers: dict[int, list[Any]] = {}
    for operation in flow.operations:
        if operation.time < time:
            for place in operation.writes:
                writers.setdefault(place, []).append(operation)
    seen, rest = set[int](), list(wanted)
    while rest:
        place = rest.pop()
        if place in seen:
            continue
        seen.add(place)
        for operation in writers.get(place, []):
            if not flow.is_open(operation.call, time):
                return False
            rest += operation.reads
    return True


def _weights_of(model: nn.Module, flow: Dataflow, bounds: tuple[int | None, int | None]) -> set[str]:
    """Names of the weights and buffers that the operations of a stage read; the last stage also has what none reads."""
    first, last = (None if cut is None else flow.calls[cut].end for cut in bounds)
    places, found = memory_of(model), set[str]()
    for operation in flow.operations:
        skipped = first is not None and operation.time < first and not flow.is_open(operation.call, first)
        if not skipped and (last is None or operation.time < last):
            for place in operation.reads & places.keys():
                found |= places[place]
    if last is None:
        read = frozenset[int]().union(*(operation.reads for operation in flow.operations))
        found |= {name for place, names in places.items() if place not in read for name in names}
    return found


def _choose(flow: Dataflow, cuts: Sequence[int], count: int, key: str) -> list[int]:
    """`count` - 1 of the cuts, so that the costliest stage costs least, and then that little is sent."""
    blocks, before = [], 0
    for cut in cuts:
        call = flow.calls[cut]
        blocks.append(Block(call.name, call.module, call.cost - before, _sent(call)))
        before = call.cost
    root = flow.calls[0]
    blocks.append(Block(root.name, root.module, root.cost - before, 0))
    return [cuts[end - 1] for _, end in cut_evenly(blocks, count, key=key)[:-1]]


def _is_right(model: nn.Module, flow: Dataflow, cuts: Sequence[int], run: Run) -> bool:
    """Whether the stages give what the whole model gives, with any number of examples."""
    for examples in (EXAMPLES, 1):
        whole = list(tensors_in(run(model, examples)))
        parts, output = Parts(model, flow, cuts), None
        try:
            for number in range(len(parts)):
                output = parts.run(number, output, lambda count=examples: run(model, count))  # type: ignore[misc]
                if number < len(cuts) and any(len(tensor) != examples for tensor in output):
                    return False
        except (RuntimeError, ValueError, TypeError, IndexError):  # a placeholder where values decide
            return False
        finally:
            parts.restore()
        found = list(tensors_in(output))
        if len(found) != len(whole) or not whole:
            return False
        if not all(torch.allclose(one, other, rtol=1e-5, atol=1e-6) for one, other in zip(whole, found, strict=True)):
            return False
    return True


def _placeholders(output: Any, like: torch.Tensor) -> Any:
    """An output without values for as many examples as a tensor has. It takes no memory."""

    def make(spec: TensorSpec) -> torch.Tensor:
        shape = (len(like), *spec.shape[1:]) if spec.shape[:1] == (EXAMPLES,) else spec.shape
        value = float("nan") if spec.dtype.is_floating_point else 0
        return torch.full((), value, dtype=spec.dtype, device=like.device).expand(shape)

    return map_tensors(output, make)


def _sent(call: Call) -> int:
    """Elements that cross a cut after a call."""
    return sum(math.prod(spec.shape) for spec in _specs(call.output))


def _specs(output: Any) -> list[TensorSpec]:
    found: list[TensorSpec] = []
    map_tensors(output, found.append)
    return found
