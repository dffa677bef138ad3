"""Watches every operation of a forward pass: which module's call it is in, what it reads, and what it writes.

Tensors are distinguished by their memory, so that views of a tensor are that tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Operation:
    """time: its place among operations and the begins and ends of calls. call: index of the innermost call around it.
    reads, writes: memory, by address.
    """

    time: int
    call: int
    reads: frozenset[int]
    writes: frozenset[int]


@dataclass
class Call:
    """One call of a module. parent: index of the call around it, -1 for the model's own. cost: floating-point operations of
    the forward pass up to its end. output: its output with a `TensorSpec` in place of each tensor; None if it holds other
    objects. made: memory of the output's tensors.
    """

    name: str
    module: nn.Module
    parent: int
    begin: int
    end: int = -1
    cost: int = 0
    output: Any = None
    made: frozenset[int] = frozenset()


@dataclass(frozen=True)
class TensorSpec:
    """What is known of a tensor without its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass
class Dataflow:
    """Operations in their order, and calls in the order in which they begin, the model's own first."""

    operations: list[Operation] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)

    def is_open(self, call: int, time: int) -> bool:
        """Whether a call has begun at a time and not ended."""
        return self.calls[call].begin < time < self.calls[call].end


def watch(model: nn.Module, run: Callable[[], Any]) -> Dataflow:
    """What happens in `run`, a forward pass of the model, which it calls once. Tensors live until the end."""
    names = {id(module): name for name, module in model.named_modules()}
    flow, counter = Dataflow(), FlopCounterMode(display=False)
    watcher = _Watcher(flow)

    def before(module: nn.Module, *_: Any) -> None:
        flow.calls.append(Call(names[id(module)], module, watcher.open[-1], watcher.tick()))
        watcher.open.append(len(flow.calls) - 1)

    def after(module: nn.Module, _: Any, output: Any) -> None:
        call = flow.calls[watcher.open.pop()]
        watcher.kept.extend(tensors := list(tensors_in(output)))
        call.end, call.cost = watcher.tick(), counter.get_total_flops()
        call.made = frozenset(map(_memory, tensors))
        try:
            call.output = map_tensors(output, lambda tensor: TensorSpec(tuple(tensor.shape), tensor.dtype))
        except TypeError:
            call.output = None

    hooks = []
    for module in model.modules():
        hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        with watcher, counter:
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return flow


class _Watcher(TorchDispatchMode):
    """Appends the operations to a Dataflow. open: indices of the calls that are open, -1 before all of them."""

    def __init__(self, flow: Dataflow) -> None:
        super().__init__()
        self.flow, self.open, self.time = flow, [-1], 0
        self.kept: list[torch.Tensor] = []  # so that no memory is used twice

    def tick(self) -> int:
        """The time; each value is returned once."""
        self.time += 1
        return self.time

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        made = list(tensors_in(result))
        self.kept += made
        reads = frozenset(map(_memory, tensors_in([args, kwargs or {}])))
        writes = frozenset(map(_memory, made))
        if not function._schema.is_mutable:
            writes -= reads  # a view
        elif not made:
            writes = reads
        self.flow.operations.append(Operation(self.tick(), self.open[-1], reads, writes))
        return result


def memory_of(model: nn.Module) -> dict[int, set[str]]:
    """{address: names of the weights and buffers that are there}."""
    places: dict[int, set[str]] = {}
    for name, tensor in [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]:
        places.setdefault(_memory(tensor), set()).add(name)
    return places


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested lists, tuples, mappings and dataclasses, in order."""
    if torch.is_tensor(value):
        yield value
    elif is_dataclass(value) and not isinstance(value, Mapping):
        yield from tensors_in(vars(value))
    elif isinstance(value, (list, tuple, Mapping)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_in(item)


def map_tensors(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same structure with change(tensor) or change(TensorSpec) in place of each. Raises: TypeError for other objects."""
    if torch.is_tensor(value) or isinstance(value, TensorSpec):
        return change(value)
    if isinstance(value, Mapping):
        items = {key: map_tensors(item, change) for key, item in value.items()}
        return items if type(value) is dict else type(value)(**items)
    if isinstance(value, (list, tuple)):
        changed = [map_tensors(item, change) for item in value]
        return type(value)(*changed) if hasattr(value, "_fields") else type(value)(changed)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{type(value).__name__} in the output of a module")


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
