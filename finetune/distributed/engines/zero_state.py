"""What a rank holds under DeepSpeed's ZeRO, by parameter name; and the whole weights again.

DeepSpeed's own mapping from parameters to fragments (`deepspeed.utils.tensor_fragment`, made for its universal
checkpoint) gives the ranges. Nothing is communicated here but to gather whole weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from finetune.distributed.session import Session
from finetune.distributed.sharded_state import Held, tensors_of, trainable_parameters
from finetune.distributed.tensor_parallel import gather_slices


def held_by_stage_1_2(module: nn.Module, zero: Any) -> Iterator[Held | None]:
    """For each trainable parameter. zero: DeepSpeed's ZeRO optimizer."""
    flats = getattr(zero, "single_partition_of_fp32_groups", None) or zero.fp32_groups_flat_partition
    for _, parameter in trainable_parameters(module):
        mapping = parameter._hp_mapping
        if mapping is None:
            yield None
            continue
        at, numel = mapping.hp_fragment_address.start, mapping.hp_fragment_address.numel
        flat = flats[mapping.param_group_index]
        yield _range_of(zero, flat, mapping.lp_fragment_address.start, at, numel)


def held_by_stage_3(module: nn.Module, zero: Any, rank: int) -> Iterator[Held | None]:
    """For each trainable parameter. zero: DeepSpeed's ZeRO optimizer."""
    for _, parameter in trainable_parameters(module):
        group, offset, partition = zero.grad_position[zero.get_param_id(parameter)]
        start = partition * rank
        numel = min(partition, parameter.ds_numel - start)
        if numel <= 0:
            yield None  # the padding of the last ranks
            continue
        yield _range_of(zero, zero.fp32_partitioned_groups_flat[group], start, offset, numel)


def held_without_optimizer(module: nn.Module, rank: int) -> Iterator[Held | None]:
    """For each trainable parameter that stage 3 shards for inference: the shard that computes."""
    for _, parameter in trainable_parameters(module):
        partition = parameter.ds_tensor.numel()
        start = partition * rank
        numel = min(partition, parameter.ds_numel - start)
        yield Held(start, parameter.ds_tensor.data.view(-1)[:numel], {}) if numel > 0 else None


def refresh_compute_copies(module: nn.Module, held: Iterator[Held | None]) -> None:
    """Stage 3 computes with a copy of its masters, which it renews only after a step."""
    for (_, parameter), own in zip(trainable_parameters(module), held, strict=True):
        if own is not None:
            parameter.ds_tensor.view(-1)[: own.weights.numel()].copy_(own.weights)


def forget_whole_weights(module: nn.Module) -> None:
    """Stage 3 keeps small weights whole between passes (stage3_param_persistence_threshold), and gathers them again only
    after a step: once its shards have changed otherwise, they are gathered when they are used next.
    """
    for parameter in module.parameters():
        status = getattr(parameter, "ds_status", None)  # DeepSpeed's ZeroParamStatus
        if status is not None and status.name == "AVAILABLE":
            parameter.partition()  # type: ignore[attr-defined, operator]


def stage_3_groups(zero: Any) -> Iterator[tuple[torch.Tensor, dict[str, Any]]]:
    """Tensors that the inner optimizer's state belongs to, with their group. Stage 3 lends them to it during a step only."""
    for index, flat in enumerate(zero.fp32_partitioned_groups_flat):
        yield flat, zero.optimizer.param_groups[zero.sub_group_to_group_id[index]]


def gather_with_layer(module: nn.Module) -> None:
    """Let stage 3 gather what a layer uses without calling the modules that hold it, whenever the layer is called."""
    import deepspeed

    for layer in module.modules():
        if getattr(layer, "calls_no_children", False):
            for weight in layer.parameters():
                deepspeed.zero.register_external_parameter(layer, weight)
            layer.ignores_hooks = True  # type: ignore[assignment]


def gather_shards(session: Session, module: nn.Module, *, trainable_only: bool) -> dict[str, torch.Tensor] | None:
    """`Engine.full_state_dict` under stage 3, one parameter at a time: no rank but 0 ever holds more than one of them."""
    import deepspeed

    collected: dict[str, torch.Tensor] = {}
    for name, parameter in module.named_parameters():
        if trainable_only and not parameter.requires_grad:
            continue
        with deepspeed.zero.GatheredParameters([parameter]) if hasattr(parameter, "ds_id") else nullcontext():
            if session.is_main:
                collected[name] = parameter.detach().cpu().clone()
    return _with_buffers(module, collected, trainable_only=trainable_only) if session.is_main else None


def gather_all_slices(session: Session, module: nn.Module, *, trainable_only: bool) -> dict[str, torch.Tensor] | None:
    """`Engine.full_state_dict` under tensor parallelism, one parameter at a time."""
    collected: dict[str, torch.Tensor] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad or not trainable_only:
            whole = gather_slices(parameter)
            if session.is_main:
                collected[name] = whole.cpu()
    return _with_buffers(module, collected, trainable_only=trainable_only) if session.is_main else None


def _with_buffers(
    module: nn.Module, collected: dict[str, torch.Tensor], *, trainable_only: bool
) -> dict[str, torch.Tensor]:
    """Also persistent buffers, and tied parameters under each of their names."""
    if trainable_only:
        return collected
    state = module.state_dict(keep_vars=True)
    buffers = {name: buffer.detach().cpu().clone() for name, buffer in module.named_buffers() if name in state}
    collected |= buffers
    by_identity = {id(tensor): name for name, tensor in state.items() if name in collected}
    for name, tensor in state.items():
        if name not in collected and id(tensor) in by_identity:
            collected[name] = collected[by_identity[id(tensor)]]
    return collected


def _range_of(zero: Any, flat: torch.Tensor, start: int, at: int, numel: int) -> Held:
    """Of a flat group of masters, and of the inner optimizer's state of it."""
    state = tensors_of(zero.optimizer.state.get(flat, {}), flat.numel())
    return Held(
        start,
        flat.data.narrow(0, at, numel),
        {key: values.view(-1).narrow(0, at, numel) for key, values in state.items()},
    )
