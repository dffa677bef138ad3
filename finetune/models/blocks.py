"""A model's blocks that follow one another, found by watching one forward pass: no table of architectures.

A call of a module is a link if it takes the tensor that the link before it gave (the same object, unchanged in between)
and gives one tensor. A module whose inner calls are such a chain from its input to its output is taken apart; a residual
block is not, because its inner chain ends before the sum, so it is one block. Between `pixel_values` and the last link
nothing but the chain's tensor is then needed to go on: there the model can be cut.
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
"""One forward pass of a model on a few examples; gives its outputs."""


@dataclass(frozen=True)
class Block:
    """cost: floating-point operations of a forward pass. size: elements of its output. in_place: it writes over its input.
    learns: some weight of it is trained.
    """

    name: str
    module: nn.Module
    cost: int
    size: int
    in_place: bool = False
    learns: bool = True


@dataclass
class _Call:
    """One call of a module. taken, given: the tensor that flows, as (identity, version); given is None for anything but
    one tensor. plain: no other argument carries a gradient.
    """

    module: nn.Module
    taken: tuple[int, int] | None
    plain: bool
    given: tuple[int, int] | None = None
    cost: int = 0
    size: int = 0
    in_place: bool = False
    inner: list[_Call] = field(default_factory=list)


def find_blocks(model: nn.Module, run: Run) -> tuple[list[Block], int]:
    """The blocks in order, and the floating-point operations of the whole forward pass. The model stays as it was.

    run: on at least two examples, so that BatchNorm has something to normalise by.
    """
    root, total = _watch(model, run)
    names = {id(module): name for name, module in model.named_modules()}
    calls = list(_links(root, root.taken))
    times: dict[int, int] = {}
    for call in _every(root):
        times[id(call.module)] = times.get(id(call.module), 0) + 1
    blocks = []
    for call in calls:
        if times[id(call.module)] > 1:  # shared by two places: the chain ends here
            break
        learns = any(parameter.requires_grad for parameter in call.module.parameters())
        blocks.append(Block(names[id(call.module)], call.module, call.cost, call.size, call.in_place, learns))
    return blocks, total


def _links(call: _Call, flowing: tuple[int, int] | None) -> Iterator[_Call]:
    """The chain inside an open call (whose output is no single tensor), as far as it goes."""
    for inner in call.inner:
        if inner.taken is None or inner.taken != flowing or inner.given == flowing or not inner.plain:
            continue  # beside the chain, or it changes nothing
        if inner.given is None:
            for link in _links(inner, flowing):
                yield link
                flowing = link.given
        else:
            yield from _apart(inner)
            flowing = inner.given


def _apart(call: _Call) -> list[_Call]:
    """The links that a call with one output consists of: itself, if its inner calls do not lead to its output."""
    found, flowing = [], call.taken
    for inner in call.inner:
        if inner.taken == flowing and inner.given not in (None, flowing) and inner.plain:
            found += _apart(inner)
            flowing = inner.given
    return found if found and flowing == call.given else [call]


def _every(call: _Call) -> Iterator[_Call]:
    for inner in call.inner:
        yield inner
        yield from _every(inner)


def _watch(model: nn.Module, run: Run) -> tuple[_Call, int]:
    """Every call of a forward pass, as a tree; in training mode, where dropout is no identity."""
    kept: list[Any] = []  # what is alive keeps its identity
    open_calls = [_Call(model, None, True)]
    counter = FlopCounterMode(display=False)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [value for value in (*args, *kwargs.values()) if torch.is_tensor(value)]
        kept.extend(tensors)
        taken = _key(tensors[0]) if tensors else None
        call = _Call(module, taken, not any(tensor.requires_grad for tensor in tensors[1:]))
        call.cost = -counter.get_total_flops()
        open_calls[-1].inner.append(call)
        open_calls.append(call)

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        call = open_calls.pop()
        call.cost += counter.get_total_flops()
        tensor = flowing(args, kwargs)
        call.in_place = tensor is not None and _key(tensor) != call.taken
        if torch.is_tensor(output):
            kept.append(output)
            call.given, call.size = _key(output), output.numel()

    hooks = []
    for module in model.modules():
        hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
        hooks.append(module.register_forward_hook(after, with_kwargs=True))
    try:
        with _as_it_was(model), counter:
            model.train()
            run(model)
    finally:
        for hook in hooks:
            hook.remove()
    (root,) = open_calls[0].inner
    return root, counter.get_total_flops()


def flowing(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The first tensor among the arguments: what flows through a chain. None if there is none."""
    return next((value for value in (*args, *kwargs.values()) if torch.is_tensor(value)), None)


def _key(tensor: torch.Tensor) -> tuple[int, int]:
    return id(tensor), tensor._version


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Modes, buffers (statistics of BatchNorm) and the random numbers to come are afterwards what they were."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.random.fork_rng(devices=[]):
        yield
    for module, training in modes:
        module.training = training
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
