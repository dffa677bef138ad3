"""DeepSpeed: ZeRO stages 0 to 3, and matrices shared out over ranks (AutoTP)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any

import torch
from torch import nn

from finetune.distributed import tensor_parallel
from finetune.distributed.batchnorm import convert_batchnorm, dummy_batch
from finetune.distributed.engines import zero_state
from finetune.distributed.engines.engine import (
    EngineOptions,
    MakeOptimizer,
    Rehearsal,
    SteppingEngine,
    has_batchnorm,
    has_synced_batchnorm,
    state_dict_on_main,
)
from finetune.distributed.engines.rehearsal import rehearse_apart, unseen_by_statistics
from finetune.distributed.gradient_norm import total_norm
from finetune.distributed.session import Session
from finetune.distributed.sharded_state import (
    Held,
    Reader,
    Shard,
    held_whole,
    initialize_state,
    load_held,
    optimizer_scalars,
    own_groups,
    shards_of,
)


class ZeroEngine(SteppingEngine):
    """The session's DeepSpeed configuration decides what the ranks share out.

    DeepSpeed builds its masters out of the parameters of an optimizer that exists already, so the optimizer is made
    before DeepSpeed wraps the module: that order is this file's own business.
    """

    def __init__(
        self, session: Session, module: nn.Module, make_optimizer: MakeOptimizer | None, options: EngineOptions
    ) -> None:
        self.session, self.module = session, module
        self.config: dict[str, Any] = session.deepspeed_config or {}
        self.stage = int(self.config.get("zero_optimization", {}).get("stage", 0))
        self.is_sliced = "tensor_parallel" in self.config
        if options.synchronized and session.world_size > 1:
            convert_batchnorm(module)
        if self.is_sliced:
            tensor_parallel.check_frozen(module)
        with redirect_stdout(sys.stderr):  # DeepSpeed prints while it starts
            if make_optimizer is None:
                self.model: Any = _wrap_for_inference(module, self.config, self.stage)
                self.optimizer: Any = None
            else:
                self.model, self.optimizer = session.accelerator.prepare(module, make_optimizer(module))
        _trust_norm(self.inner_optimizer)
        if self.stage == 3:
            zero_state.gather_with_layer(module)
        if self.is_sliced:
            tensor_parallel.check_slices(module)
            tensor_parallel.join_input_gradients(module)
        self.has_batchnorm = has_batchnorm(module)
        if self.optimizer is not None and type(self.model).__name__ != "DeepSpeedEngine":
            raise RuntimeError(f"asked for a DeepSpeed engine, got {type(self.model).__name__}")

    @property
    def needs_lockstep(self) -> bool:
        """Gradients (stages 2 and 3), weights (stage 3), or BatchNorm statistics."""
        return self.stage >= 2 or has_synced_batchnorm(self.module)

    @property
    def shards_weights(self) -> bool:
        return self.stage == 3

    @property
    def torch_optimizer(self) -> Any:
        """The optimizer that holds the state: inside DeepSpeed's, which inner_optimizer is from stage 1 on."""
        return getattr(self.inner_optimizer, "optimizer", self.inner_optimizer)

    @contextmanager
    def micro_batch(self, *, last: bool, dummy: bool = False) -> Iterator[None]:
        self.model.set_gradient_accumulation_boundary(is_boundary=last)
        with dummy_batch(self.module) if dummy and self.has_batchnorm else nullcontext():
            yield

    def backward(self, loss: torch.Tensor) -> None:
        self.model.backward(loss, scale_wrt_gas=False)

    @property
    def rehearses_together(self) -> bool:
        return self.stage == 3 or self.is_sliced or has_synced_batchnorm(self.module)

    def rehearse(self, batch: Any, rehearsal: Rehearsal) -> None:
        """Stage 3 gathers weights and reduces gradients by its own hooks: a loss of zero adds nothing to its sums."""
        if self.stage < 3:
            rehearse_apart(self.module, batch, rehearsal)
            return
        with self.micro_batch(last=False), unseen_by_statistics(self.module):
            self.backward(rehearsal.loss_sum(rehearsal.forward(self.model, batch), batch) * 0.0)

    def step(self) -> torch.Tensor:
        whole = self._replicated_grad_norm() if self.stage == 0 else None
        self.model.step()
        norm = whole if whole is not None else self.model.get_global_grad_norm()
        if norm is None:
            return torch.tensor(torch.nan)
        norm = torch.as_tensor(norm).detach()
        return torch.where(norm >= 0, norm, torch.nan)  # DeepSpeed says -1 of a norm that is not finite

    def _replicated_grad_norm(self) -> torch.Tensor:
        """Stage 0 clips without reporting the norm; after the last backward every rank holds the reduced gradients."""
        return total_norm(parameter.grad for parameter in self.module.parameters() if parameter.grad is not None)

    def local_shards(self) -> Iterator[Shard]:
        unsliced = not self.is_sliced or self.session.is_replica_lead
        return shards_of(self.module, self._held(), buffers=self.session.is_main, unsliced=unsliced)

    def load_shards(self, read: Reader, scalars: dict[str, Any]) -> None:
        zero = self.inner_optimizer
        if zero is not None:
            owners = zero_state.stage_3_groups(zero) if self.stage == 3 else own_groups(self.torch_optimizer)
            initialize_state(self.torch_optimizer, owners, int(scalars["optimizer_step"]))
        load_held(self.module, self._held(every_rank=True), read)
        if self.stage == 3:
            zero_state.forget_whole_weights(self.module)
        if zero is None:
            return
        if self.stage == 3:
            zero_state.refresh_compute_copies(self.module, self._held())
        elif self.stage:
            zero.update_lp_params()
        scaler = getattr(zero, "loss_scaler", None)
        if scaler is not None and hasattr(scaler, "cur_scale") and "loss_scale" in scalars:
            scaler.cur_scale = scalars["loss_scale"]

    def scalars(self) -> dict[str, Any]:
        return optimizer_scalars(self.torch_optimizer, getattr(self.inner_optimizer, "loss_scaler", None))

    def full_state_dict(self, *, trainable_only: bool = False) -> dict[str, torch.Tensor] | None:
        whole = state_dict_on_main
        if self.is_sliced:
            whole = zero_state.gather_all_slices
        elif self.stage == 3:
            whole = zero_state.gather_shards
        return whole(self.session, self.module, trainable_only=trainable_only)

    def _held(self, *, every_rank: bool = False) -> Iterator[Held | None]:
        """every_rank: what is replicated is held by every rank, and not by one of them."""
        zero, session = self.inner_optimizer, self.session
        if self.stage == 3:
            if zero is None:
                return zero_state.held_without_optimizer(self.module, session.rank)
            return zero_state.held_by_stage_3(self.module, zero, session.rank)
        if self.stage and zero is not None:
            return zero_state.held_by_stage_1_2(self.module, zero)
        writer = None if every_rank else session.replica
        return held_whole(self.module, self.torch_optimizer, writer=writer, writers=session.replicas)


def open_deepspeed(
    session: Session, module: nn.Module, make_optimizer: MakeOptimizer | None, options: EngineOptions
) -> ZeroEngine:
    """All ranks call it."""
    return ZeroEngine(session, module, make_optimizer, options)


def _trust_norm(zero: Any) -> None:
    """Stages 1 and 2 search all gradients for overflow in every bf16 step, and ask the device for what they found. The norm
    says as much, and the loop reads it before anything is saved; older releases of DeepSpeed, whose norm of several groups
    does not, keep their search. float16 needs it for its loss scale.
    """
    from deepspeed.runtime import utils

    if getattr(zero, "dtype", None) == torch.bfloat16 and hasattr(utils, "combine_grad_norm_groups"):
        zero.check_grad_overflow = False


def _wrap_for_inference(module: nn.Module, config: dict[str, Any], stage: int) -> Any:
    """What computes as the training engine does, without masters, gradients and optimizer state.

    Stages 1 and 2 want an optimizer to share out, and hold whole weights for computing: as stage 0 does. DeepSpeed itself
    casts the weights, because what it leaves in float32 depends on its version.
    """
    import deepspeed

    settings = config if stage == 3 else {**config, "zero_optimization": {"stage": 0}}
    engine, *_ = deepspeed.initialize(model=module, config=settings)
    return engine
