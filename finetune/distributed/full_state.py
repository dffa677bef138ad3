"""Whole weights on rank 0, from any engine: what `save_pretrained` takes."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch

from finetune.distributed.engine import Engine
from finetune.distributed.pipeline import PipelineEngine, gather_stages
from finetune.distributed.tensor_parallel import gather_slices


def consolidate(engine: Engine, *, trainable_only: bool = False) -> dict[str, torch.Tensor] | None:
    """The module's state dict on rank 0 (CPU tensors); None on the others. All ranks call it.

    Under ZeRO-3 and tensor parallelism parameters are gathered one at a time, so no rank but 0 ever holds more than one
    of them.
    trainable_only: adapters and saved heads, without the frozen base.
    """
    if isinstance(engine, PipelineEngine):
        return gather_stages(engine, trainable_only=trainable_only)
    module = engine.module
    keep_all = not trainable_only
    is_main = engine.session.is_main
    collected: dict[str, torch.Tensor] = {}
    if engine.is_sliced:
        return _put_together(engine, trainable_only)
    if engine.session.zero_stage != 3:
        if not is_main:
            return None
        wanted = {name for name, p in module.named_parameters() if p.requires_grad} if trainable_only else None
        return {
            name: tensor.detach().cpu()
            for name, tensor in module.state_dict().items()
            if wanted is None or name in wanted
        }
    import deepspeed

    for name, parameter in module.named_parameters():
        if not (keep_all or parameter.requires_grad):
            continue
        with deepspeed.zero.GatheredParameters([parameter]) if hasattr(parameter, "ds_id") else nullcontext():
            if is_main:
                collected[name] = parameter.detach().cpu().clone()
    if not is_main:
        return None
    state = module.state_dict(keep_vars=True)
    buffers: dict[str, Any] = dict(module.named_buffers())
    if keep_all:
        collected |= {name: buffer.detach().cpu().clone() for name, buffer in buffers.items() if name in state}
        _add_tied_names(collected, state)
    return collected


def _put_together(engine: Engine, trainable_only: bool) -> dict[str, torch.Tensor] | None:
    """Slices of tensor parallelism, one parameter at a time. All ranks call it."""
    collected: dict[str, torch.Tensor] = {}
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad or not trainable_only:
            whole = gather_slices(parameter)
            if engine.session.is_main:
                collected[name] = whole.cpu()
    if not engine.session.is_main:
        return None
    state = engine.module.state_dict(keep_vars=True)
    if not trainable_only:
        buffers = {name: buffer.detach().cpu().clone() for name, buffer in engine.module.named_buffers()}
        collected |= {name: buffer for name, buffer in buffers.items() if name in state}
        _add_tied_names(collected, state)
    return collected


def _add_tied_names(collected: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
    """Tied parameters appear once among the parameters and under every name in a state dict."""
    by_identity = {id(tensor): name for name, tensor in state.items() if name in collected}
    for name, tensor in state.items():
        if name not in collected and id(tensor) in by_identity:
            collected[name] = collected[by_identity[id(tensor)]]
