"""An engine's state by parameter name, as pieces: each rank hands over what it holds, and takes what it needs.

A piece is a range [start, start + numel) of a flattened tensor, or of some of its columns: `name` (fp32 weights),
`name.exp_avg` and so on for each tensor of optimiser state. Which rank held it, under which ZeRO stage or slicing, is not
part of it: any number of ranks and any stage can read what any other wrote. Nothing is communicated but ZeRO-1/2's usual
all-gather after loading. DeepSpeed's own mapping from parameters to fragments (`deepspeed.utils.tensor_fragment`, made
for its universal checkpoint) tells the ranges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from finetune.distributed.engine import Engine
from finetune.distributed.tensor_parallel import Slice, slice_of, whole_shape


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


def trainable_parameters(module: nn.Module) -> list[tuple[str, Any]]:
    """In the module's own order; tied parameters once. (DeepSpeed hangs attributes of its own on them.)"""
    return [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]


def local_shards(engine: Engine) -> Iterator[Shard]:
    """What this rank holds of weights, optimiser state and buffers. Every piece is held by exactly one rank.

    Replicated tensors (DistributedDataParallel, stage 0) are shared out by name, buffers come from rank 0 (of a pipeline,
    from the ranks of its first replica).
    """
    places = _places(engine)
    for (name, parameter), held in zip(trainable_parameters(engine.module), places, strict=True):
        if held is None:
            continue
        shape, cut = whole_shape(parameter), slice_of(parameter)
        if engine.is_sliced and cut is None and not engine.session.is_replica_lead:
            continue  # whole on every rank of the replica: the first one hands it over
        start, columns = (held.start, None) if cut is None else (cut.first_element + held.start, cut.columns)
        yield Shard(name, start, shape, held.weights, columns)
        for key, values in held.state.items():
            yield Shard(f"{name}.{key}", start, shape, values, columns)
    if engine.holds_buffers:
        for name, buffer in persistent_buffers(engine.module):
            yield Shard(f"{name}", 0, tuple(buffer.shape), buffer.detach().reshape(-1))


def scalars(engine: Engine) -> dict[str, Any]:
    """What the optimiser keeps beside tensors: its step count, and a loss scale if there is one."""
    optimizer = _torch_optimizer(engine)
    steps = {int(state["step"]) for state in optimizer.state.values() if "step" in state}
    steps |= {int(group["step"]) for group in optimizer.param_groups if "step" in group}
    found: dict[str, Any] = {"optimizer_step": max(steps, default=0)}
    scaler = getattr(engine.inner_optimizer, "loss_scaler", None)
    if scaler is not None and hasattr(scaler, "cur_scale"):
        found["loss_scale"] = float(scaler.cur_scale)
    return found


def load_shards(engine: Engine, read: Reader, stored: dict[str, Any]) -> None:
    """Take this rank's ranges of weights, optimiser state and buffers through `read`. All ranks call it.

    stored: what `scalars` gave. Keys of optimiser state are asked for as this optimiser names them.
    """
    _initialise_optimizer_state(engine, int(stored["optimizer_step"]))
    with torch.no_grad():
        for (name, parameter), held in zip(
            trainable_parameters(engine.module), _places(engine, all_ranks=True), strict=True
        ):
            if held is None:
                continue
            numel, cut = held.weights.numel(), slice_of(parameter)
            held.weights.copy_(_read(read, name, held.start, numel, cut))
            for key, values in held.state.items():
                values.copy_(_read(read, f"{name}.{key}", held.start, numel, cut))
            if engine.session.zero_stage == 3:
                parameter.ds_tensor.view(-1)[:numel].copy_(held.weights)
        for name, buffer in persistent_buffers(engine.module):
            buffer.copy_(read(name, 0, buffer.numel()).reshape(buffer.shape))
    if engine.session.zero_stage in (1, 2):
        engine.inner_optimizer.update_lp_params()
    scaler = getattr(engine.inner_optimizer, "loss_scaler", None)
    if scaler is not None and hasattr(scaler, "cur_scale") and "loss_scale" in stored:
        scaler.cur_scale = stored["loss_scale"]


def _read(read: Reader, key: str, start: int, numel: int, cut: Slice | None) -> torch.Tensor:
    """Flat range [start, start + numel) of this rank's slice of `key`."""
    if cut is None or cut.columns is None:
        return read(key, start + (cut.first_element if cut else 0), numel)
    (first, last), of = cut.columns, cut.shape[1]
    width = last - first
    top, bottom = start // width, -(-(start + numel) // width)
    rows = read(key, top * of, (bottom - top) * of).view(-1, of)
    return rows[:, first:last].reshape(-1)[start - top * width :][:numel]


def persistent_buffers(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Buffers that belong to the state dict (BatchNorm statistics, but not rotary tables), and to this rank's layers."""
    state = module.state_dict(keep_vars=True)
    return [(name, buffer) for name, buffer in module.named_buffers() if name in state and not buffer.is_meta]


@dataclass
class _Held:
    """This rank's range of one parameter: fp32 weights and optimiser state, views into the engine's memory."""

    start: int
    weights: torch.Tensor
    state: dict[str, torch.Tensor]


def _places(engine: Engine, *, all_ranks: bool = False) -> Iterator[_Held | None]:
    """For each trainable parameter what this rank holds. all_ranks: replicated tensors on every rank, not on one."""
    stage = engine.session.zero_stage
    if engine.is_deepspeed and stage in (1, 2):
        yield from _places_zero12(engine)
    elif engine.is_deepspeed and stage == 3:
        yield from _places_zero3(engine)
    else:
        yield from _places_replicated(engine, all_ranks)


def _places_replicated(engine: Engine, all_ranks: bool) -> Iterator[_Held | None]:
    optimizer = _torch_optimizer(engine)
    loads = [0] * engine.session.replicas
    for _, parameter in trainable_parameters(engine.module):
        if parameter.is_meta:  # of another stage of the pipeline
            yield None
            continue
        writer = loads.index(min(loads))
        loads[writer] += parameter.numel()
        if all_ranks or writer == engine.session.replica:
            state = optimizer.state.get(parameter, {})
            yield _Held(0, parameter.data.view(-1), _tensors(state, parameter.numel()))
        else:
            yield None


def _places_zero12(engine: Engine) -> Iterator[_Held | None]:
    zero = engine.inner_optimizer
    flats = getattr(zero, "single_partition_of_fp32_groups", None) or zero.fp32_groups_flat_partition
    for _, parameter in trainable_parameters(engine.module):
        mapping = parameter._hp_mapping
        if mapping is None:
            yield None
            continue
        at, numel = mapping.hp_fragment_address.start, mapping.hp_fragment_address.numel
        flat = flats[mapping.param_group_index]
        state = _tensors(zero.optimizer.state.get(flat, {}), flat.numel())
        yield _Held(
            mapping.lp_fragment_address.start,
            flat.data.narrow(0, at, numel),
            {key: values.view(-1).narrow(0, at, numel) for key, values in state.items()},
        )


def _places_zero3(engine: Engine) -> Iterator[_Held | None]:
    zero = engine.inner_optimizer
    for _, parameter in trainable_parameters(engine.module):
        group, offset, partition = zero.grad_position[zero.get_param_id(parameter)]
        start = partition * engine.session.rank
        numel = min(partition, parameter.ds_numel - start)
        if numel <= 0:
            yield None  # the padding of the last ranks
            continue
        flat = zero.fp32_partitioned_groups_flat[group]
        state = _tensors(zero.optimizer.state.get(flat, {}), flat.numel())
        yield _Held(
            start,
            flat.data.narrow(0, offset, numel),
            {key: values.view(-1).narrow(0, offset, numel) for key, values in state.items()},
        )


def _tensors(state: dict[str, Any], numel: int) -> dict[str, torch.Tensor]:
    return {
        key: value.data.view(-1)
        for key, value in state.items()
        if torch.is_tensor(value) and value.numel() == numel and key != "step"
    }


def _torch_optimizer(engine: Engine) -> torch.optim.Optimizer:
    """The optimiser that holds `state`: inside DeepSpeed's wrapper where there is one."""
    inner = engine.inner_optimizer
    return getattr(inner, "optimizer", inner)


def _initialise_optimizer_state(engine: Engine, step: int) -> None:
    """Zero tensors of state where none is yet, as the first step would make them; then the stored step count."""
    optimizer = _torch_optimizer(engine)
    for owner, group in _state_owners(engine, optimizer):
        if "Fused" in type(optimizer).__name__:
            group["step"] = step
        state = optimizer.state[owner]
        for key in _state_keys(optimizer, group):
            if key not in state:
                state[key] = torch.zeros_like(owner.data)
        if _counts_steps(optimizer):
            torchs = type(optimizer).__module__.startswith("torch")  # fused kernels want the count beside the weights
            state["step"] = torch.tensor(float(step), device=owner.device) if torchs else step


def _state_owners(engine: Engine, optimizer: torch.optim.Optimizer) -> Iterator[tuple[torch.Tensor, dict[str, Any]]]:
    """Tensors that the optimiser's state belongs to, with their group. ZeRO-3 lends them to it only during a step."""
    if engine.is_deepspeed and engine.session.zero_stage == 3:
        zero = engine.inner_optimizer
        for index, flat in enumerate(zero.fp32_partitioned_groups_flat):
            yield flat, optimizer.param_groups[zero.sub_group_to_group_id[index]]
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield parameter, group


def _state_keys(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> tuple[str, ...]:
    if "betas" in group:
        return ("exp_avg",) if "Lion" in type(optimizer).__name__ else ("exp_avg", "exp_avg_sq")
    return ("momentum_buffer",) if group.get("momentum") else ()


def _counts_steps(optimizer: torch.optim.Optimizer) -> bool:
    return any("betas" in group for group in optimizer.param_groups) and "Fused" not in type(optimizer).__name__
