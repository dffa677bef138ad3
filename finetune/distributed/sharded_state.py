"""The state of a training by parameter name, in shards: each rank hands over what it holds, and takes what it needs.

A shard is a range [start, start + numel) of a flattened tensor, or of some of its columns: `name` (float32 weights),
`name.exp_avg` and so on for each tensor of optimizer state. Which rank held it, under which engine or ZeRO stage, is not
part of it: any number of ranks under any engine can read what any other wrote. How an engine holds its state is its own
business: it says so as `Held` ranges, and this file does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from finetune.distributed.tensor_parallel import Slice, slice_of, whole_shape
from finetune.recipe.optimizers import spec_of


@dataclass(frozen=True)
class Shard:
    """values: flat, [numel], the engine's own memory (copy before the next step). shape: of the whole tensor.

    columns: of a matrix, [first, last): the range is one of those columns alone, flattened; None: of all of it.
    """

    key: str
    start: int
    shape: tuple[int, ...]
    values: torch.Tensor
    columns: tuple[int, int] | None = None

    @property
    def end(self) -> int:
        return self.start + self.values.numel()


Reader = Callable[[str, int, int], torch.Tensor]
"""(key, start, numel) -> flat float tensor: that range of a stored tensor."""


@dataclass
class Held:
    """This rank's range of one parameter: float32 weights and optimizer state, views into the engine's memory. State in 8 bits
    is held whole, beside its scales.
    """

    start: int
    weights: torch.Tensor
    state: dict[str, torch.Tensor]


def trainable_parameters(module: nn.Module) -> list[tuple[str, Any]]:
    """In the module's own order; tied parameters once. (DeepSpeed hangs attributes of its own on them.)"""
    return [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]


def persistent_buffers(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Buffers that belong to the state dict (BatchNorm statistics, but not rotary tables), and to this rank's layers."""
    state = module.state_dict(keep_vars=True)
    return [(name, buffer) for name, buffer in module.named_buffers() if name in state and not buffer.is_meta]


def shards_of(
    module: nn.Module, held: Iterable[Held | None], *, buffers: bool, unsliced: bool = True
) -> Iterator[Shard]:
    """What this rank hands over to a checkpoint. held: an entry for each trainable parameter, in the module's order.

    buffers: whether this rank hands over its buffers; unsliced: also the parameters that tensor parallelism leaves whole.
    """
    for (name, parameter), own in zip(trainable_parameters(module), held, strict=True):
        cut = slice_of(parameter) if own is not None else None
        if own is None or (cut is None and not unsliced):
            continue
        start, columns = (own.start, None) if cut is None else (cut.first_element + own.start, cut.columns)
        shape = whole_shape(parameter)
        yield Shard(name, start, shape, own.weights, columns)
        for key, values in own.state.items():
            if values.numel() == own.weights.numel():
                yield Shard(f"{name}.{key}", start, shape, values, columns)
            else:  # scales of the blocks of a whole tensor
                yield Shard(f"{name}.{key}", 0, (values.numel(),), values)
    if buffers:
        for name, buffer in persistent_buffers(module):
            yield Shard(name, 0, tuple(buffer.shape), buffer.detach().reshape(-1))


@torch.no_grad()
def load_held(module: nn.Module, held: Iterable[Held | None], read: Reader) -> None:
    """Fill this rank's ranges of weights and optimizer state, and the buffers. held: as for `shards_of`."""
    for (name, parameter), own in zip(trainable_parameters(module), held, strict=True):
        if own is None:
            continue
        numel, cut = own.weights.numel(), slice_of(parameter)
        own.weights.copy_(read_slice(read, name, own.start, numel, cut))
        for key, values in own.state.items():
            values.copy_(read_slice(read, f"{name}.{key}", own.start, values.numel(), cut))
    for name, buffer in persistent_buffers(module):
        buffer.copy_(read(name, 0, buffer.numel()).reshape(buffer.shape))


def read_slice(read: Reader, key: str, start: int, numel: int, cut: Slice | None) -> torch.Tensor:
    """Flat range [start, start + numel) of this rank's slice of `key`; cut None: of the whole tensor."""
    if cut is None or cut.columns is None:
        return read(key, start + (cut.first_element if cut else 0), numel)
    (first, last), of = cut.columns, cut.shape[1]
    width = last - first
    top, bottom = start // width, -(-(start + numel) // width)
    rows = read(key, top * of, (bottom - top) * of).view(-1, of)
    return rows[:, first:last].reshape(-1)[start - top * width :][:numel]


def held_whole(
    module: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    *,
    writer: int | None = None,
    writers: int = 1,
    master: Callable[[Any], Any] = lambda parameter: parameter,
) -> Iterator[Held | None]:
    """For each trainable parameter of a rank that holds whole ones. A parameter on `meta` is not this rank's.

    writer, writers: only the share of replica `writer` of `writers`, which hold the same; None: everything. master: what
    the optimizer updates for a parameter.
    """
    loads = [0] * writers
    for _, parameter in trainable_parameters(module):
        if parameter.is_meta:
            yield None
            continue
        lightest = loads.index(min(loads))
        loads[lightest] += parameter.numel()
        if writer is not None and lightest != writer:
            yield None
            continue
        held = master(parameter)
        state = optimizer.state.get(held, {}) if optimizer is not None else {}
        yield Held(0, held.data.view(-1), tensors_of(state, parameter.numel()) | scales_of(optimizer, state))


def tensors_of(state: dict[str, Any], numel: int) -> dict[str, torch.Tensor]:
    """An optimizer's tensors of the size of what they belong to, flat; its step count is none of them."""
    return {
        key: value.data.view(-1)
        for key, value in state.items()
        if torch.is_tensor(value) and value.numel() == numel and key != "step"
    }


def scales_of(optimizer: torch.optim.Optimizer | None, state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Of the state of one whole parameter, where it has 8 bits; {} where it has not."""
    names = spec_of(optimizer).scales if optimizer is not None else ()
    return {name: state[name] for name in names if name in state}


def _read_counts(counts: Iterable[Any]) -> set[int]:
    """Numbers, or tensors of one: a fused optimizer keeps one for each weight on its device, which is asked once for all."""
    found: dict[torch.device, list[torch.Tensor]] = {}
    numbers = set[int]()
    for count in counts:
        if torch.is_tensor(count):
            found.setdefault(count.device, []).append(count.reshape(()))
        else:
            numbers.add(int(count))
    return numbers.union(*(map(int, torch.stack(tensors).tolist()) for tensors in found.values()))


def optimizer_scalars(optimizer: torch.optim.Optimizer, scaler: Any = None) -> dict[str, Any]:
    """What an optimizer keeps beside tensors: its step count, and a loss scale if there is one."""
    steps = _read_counts(
        part["step"] for part in (*optimizer.state.values(), *optimizer.param_groups) if "step" in part
    )
    scalars: dict[str, Any] = {"optimizer_step": max(steps, default=0)}
    if scaler is not None and hasattr(scaler, "cur_scale"):
        scalars["loss_scale"] = float(scaler.cur_scale)
    return scalars


def own_groups(optimizer: torch.optim.Optimizer) -> Iterator[tuple[torch.Tensor, dict[str, Any]]]:
    """Tensors that the optimizer's state belongs to, with their group."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield parameter, group


def initialize_state(
    optimizer: torch.optim.Optimizer, owners: Iterable[tuple[torch.Tensor, dict[str, Any]]], step: int
) -> None:
    """Zero tensors of state where there are none yet, as the first step would make them; then the step count.

    owners: the tensors that hold the state, of any shape, with their parameter groups. step: optimizer steps done.
    """
    spec = spec_of(optimizer)
    for owner, group in owners:
        if spec.step == "group":
            group["step"] = step
        state = optimizer.state[owner]
        if spec.scales and not state:
            optimizer.add_state(owner)  # type: ignore[attr-defined]
        for key in spec.state_of(group):
            if key not in state:
                state[key] = torch.zeros_like(owner.data)
        if spec.step == "number":
            state["step"] = step
        elif spec.step in ("host", "device"):  # fused kernels want the count beside the weights
            state["step"] = torch.tensor(float(step), device=owner.device if spec.step == "device" else "cpu")
