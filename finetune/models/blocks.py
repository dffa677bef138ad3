"""Finds the consecutive blocks of a model by observing one forward pass, without a table of architectures.

A call of a module is a link of a chain if its input is the tensor that the previous link returned (the same object, not
modified in between) and it returns one tensor. A module whose inner calls form a chain from its input to its output is
split further; a residual block is not, because its inner chain ends before the sum, so it is one block. Between two
links, the forward pass needs only the tensor of the chain, so the model can be split there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

Run = Callable[[nn.Module], Any]
"""Runs a forward pass of a model on a few examples and returns its outputs."""


@dataclass(frozen=True)
class Block:
    """A module that takes and returns one tensor.

    cost: floating-point operations of its forward pass. size: number of elements of its output. in_place: it modifies
    its input. trainable: it has weights that are trained.
    """

    name: str
    module: nn.Module
    cost: int
    size: int
    in_place: bool = False
    trainable: bool = True


@dataclass
class _Call:
    """One call of a module.

    input, output: the tensor of the chain as (identity, version); output is None unless it is a single tensor.
    single_input: no other argument requires a gradient.
    """

    module: nn.Module
    input: tuple[int, int] | None
    single_input: bool
    output: tuple[int, int] | None = None
    cost: int = 0
    size: int = 0
    in_place: bool = False
    inner: list[_Call] = field(default_factory=list)


def find_blocks(model: nn.Module, run: Run) -> tuple[list[Block], int]:
    """(blocks in order, floating-point operations of the whole forward pass). Does not change the model.

    run: a forward pass on at least two examples, which BatchNorm needs in training mode.
    """
    root, total = _trace(model, run)
    names = {id(module): name for name, module in model.named_modules()}
    calls = list(_links(root, root.input))
    num_calls: dict[int, int] = {}
    for call in _all_calls(root):
        num_calls[id(call.module)] = num_calls.get(id(call.module), 0) + 1
    blocks = []
    for call in calls:
        if num_calls[id(call.module)] > 1:  # the module is called more than once: the chain ends here
            break
        trainable = any(parameter.requires_grad for parameter in call.module.parameters())
        blocks.append(Block(names[id(call.module)], call.module, call.cost, call.size, call.in_place, trainable))
    return blocks, total


def _links(call: _Call, tensor: tuple[int, int] | None) -> Iterator[_Call]:
    """The longest chain inside a call whose output is not a single tensor. tensor: the start of the chain."""
    for inner in call.inner:
        if inner.input is None or inner.input != tensor or inner.output == tensor or not inner.single_input:
            continue  # not part of the chain, or an identity
        if inner.output is None:
            for link in _links(inner, tensor):
                yield link
                tensor = link.output
        else:
            yield from _split(inner)
            tensor = inner.output


def _split(call: _Call) -> list[_Call]:
    """The links inside a call with one output; the call itself if its inner calls do not form a chain to its output."""
    links, tensor = [], call.input
    for inner in call.inner:
        if inner.input == tensor and inner.output not in (None, tensor) and inner.single_input:
            links += _split(inner)
            tensor = inner.output
    return links if links and tensor == call.output else [call]


def _all_calls(call: _Call) -> Iterator[_Call]:
    for inner in call.inner:
        yield inner
        yield from _all_calls(inner)


def _trace(model: nn.Module, run: Run) -> tuple[_Call, int]:
    """(tree of all calls of a forward pass, its floating-point operations).

    Runs in training mode, because in evaluation mode dropout returns its input.
    """
    kept: list[Any] = []  # keeps tensors alive, so that their identities stay unique
    open_calls = [_Call(model, None, True)]
    counter = FlopCounterMode(display=False)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [value for value in (*args, *kwargs.values()) if torch.is_tensor(value)]
        kept.extend(tensors)
        tensor = _key(tensors[0]) if tensors else None
        call = _Call(module, tensor, not any(tensor.requires_grad for tensor in tensors[1:]))
        call.cost = -counter.get_total_flops()
        open_calls[-1].inner.append(call)
        open_calls.append(call)

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        call = open_calls.pop()
        call.cost += counter.get_total_flops()
        tensor = first_tensor(args, kwargs)
        call.in_place = tensor is not None and _key(tensor) != call.input
        if torch.is_tensor(output):
            kept.append(output)
            call.output, call.size = _key(output), output.numel()

    hooks = []
    for module in model.modules():
        hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
        hooks.append(module.register_forward_hook(after, with_kwargs=True))
    try:
        with _state_restored(model), counter:
            model.train()
            run(model)
    finally:
        for hook in hooks:
            hook.remove()
    (root,) = open_calls[0].inner
    return root, counter.get_total_flops()


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The first tensor among the arguments of a call, which is the tensor of the chain; None if there is none."""
    return next((value for value in (*args, *kwargs.values()) if torch.is_tensor(value)), None)


def _key(tensor: torch.Tensor) -> tuple[int, int]:
    return id(tensor), tensor._version


@contextmanager
def _state_restored(model: nn.Module) -> Iterator[None]:
    """Restore training modes, buffers (statistics of BatchNorm) and the random number generator on exit."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.random.fork_rng(devices=[]):
        yield
    for module, training in modes:
        module.training = training
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
