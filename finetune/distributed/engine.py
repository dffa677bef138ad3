"""A model and its optimiser under DistributedDataParallel or DeepSpeed: one face for the training step.

Both average gradients over ranks, so the loop scales a rank's loss sum by world size / global units and the average
becomes the sum over all ranks divided by the global units: exact on any number of ranks and micro-batches.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from finetune.distributed import tensor_parallel
from finetune.distributed.batchnorm import SyncedBatchNorm, convert_batchnorm, dummy_batch
from finetune.distributed.session import Session
from finetune.distributed.stopwatch import Stopwatch


@dataclass(frozen=True)
class Accumulated:
    """losses: the loss sum of each micro-batch, float64; 0 on a rank that does not speak. Of this rank: forward_pass, the
    time of the forward passes; waiting_seconds, for the neighbours in a pipeline.
    """

    losses: list[torch.Tensor]
    forward_pass: Stopwatch
    waiting_seconds: float = 0.0


class Engine:
    """`accumulate` the gradients of a step's micro-batches, then `step`."""

    def __init__(
        self, session: Session, module: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float
    ) -> None:
        """All ranks call it. module: on the CPU or already sharded by ZeRO-3's load."""
        self.session = session
        self.module = module
        self.max_grad_norm = max_grad_norm
        if session.deepspeed_config is None:
            module.to(session.device)
        self.is_deepspeed = session.deepspeed_config is not None
        if self.is_sliced:
            tensor_parallel.check_frozen(module)
        with redirect_stdout(sys.stderr):  # DeepSpeed prints while it starts
            model, prepared = session.accelerator.prepare(module, optimizer)
        if self.is_sliced:
            tensor_parallel.check_slices(module)
            tensor_parallel.join_input_gradients(module)
        self.model: Any = model  # called like the module itself
        self.optimizer: Any = prepared
        self.has_batchnorm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())
        if self.is_deepspeed and type(model).__name__ != "DeepSpeedEngine":
            raise RuntimeError(f"asked for a DeepSpeed engine, got {type(model).__name__}")

    @property
    def lockstep(self) -> bool:
        """Whether every micro-batch communicates: gradients (stage 2, 3), weights (stage 3), or BatchNorm statistics."""
        synced = any(isinstance(module, SyncedBatchNorm) for module in self.module.modules())
        return self.session.zero_stage >= 2 or synced

    @property
    def passes(self) -> float:
        """What forward and backward pass take together, in forward passes: gradients of activations take one more, those of
        weights one for all that are trained, and gradient checkpointing runs the forward pass again.
        """
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in self.module.parameters()]
        trained = sum(size for size, is_trained in sizes if is_trained) / max(sum(size for size, _ in sizes), 1)
        again = any(getattr(module, "gradient_checkpointing", False) for module in self.module.modules())
        return 2.0 + trained + again

    @property
    def owns_outputs(self) -> bool:
        """Whether this rank's losses and predictions count: one rank of each replica's does."""
        return self.session.is_replica_lead

    @property
    def is_sliced(self) -> bool:
        """Whether this rank holds slices of matrices (tensor parallelism)."""
        return "tensor_parallel" in (self.session.deepspeed_config or {})

    @property
    def inner_optimizer(self) -> Any:
        """DeepSpeed's ZeRO optimiser, or torch's own."""
        return self.optimizer.optimizer

    def set_learning_rate(self, learning_rate: float) -> None:
        """For the next step, in every parameter group."""
        for group in self.inner_optimizer.param_groups:
            group["lr"] = learning_rate * group.get("lr_scale", 1.0)

    @property
    def whole(self) -> nn.Module:
        """The model as `Task.sample` takes it: one that generates, and gives every rank its outputs."""
        return self.module

    @property
    def holds_buffers(self) -> bool:
        """Whether this rank hands over the buffers that it has to a checkpoint: one rank does for each of them."""
        return self.session.is_main

    def accumulate(
        self,
        batches: Sequence[Any],
        forward: Callable[[Any], Any],
        loss_sum: Callable[[Any, Any], torch.Tensor],
        scale: Callable[[], float],
    ) -> Accumulated:
        """Forward and backward of every micro-batch; the gradients are reduced afterwards. All ranks call it.

        forward: a batch on the device -> outputs, through `model`. loss_sum: (outputs, batch) -> scalar.
        scale: of the loss sums, for the gradients; asked before each backward pass, and not sooner, since it may have to
        wait for other ranks.
        """
        losses, forward_pass = [], Stopwatch(self.session.device)
        for index, batch in enumerate(batches):
            batch = batch.to(self.session.device)
            with self.micro_batch(last=index == len(batches) - 1, dummy=batch.dummy):
                with forward_pass.running():
                    loss = loss_sum(forward(batch), batch)
                self.backward(loss * scale())
            losses.append(loss.detach().double())
        return Accumulated(losses, forward_pass)

    @contextmanager
    def micro_batch(self, *, last: bool, dummy: bool = False) -> Iterator[None]:
        """Around forward and backward of one micro-batch; gradients are reduced (where the stage waits for it) on the
        last. ghost: statistics that the model keeps do not see this one.
        """
        quiet: Any = nullcontext()
        if self.is_deepspeed:
            self.model.set_gradient_accumulation_boundary(is_boundary=last)
        elif not last:
            quiet = self.session.accelerator.no_sync(self.model)
        with quiet, dummy_batch(self.module) if dummy and self.has_batchnorm else nullcontext():
            yield

    def backward(self, loss: torch.Tensor) -> None:
        """Inside `micro_batch`. loss: scalar, already scaled by world size / global units."""
        if self.is_deepspeed:
            self.model.backward(loss, scale_wrt_gas=False)
        else:
            self.session.accelerator.backward(loss)

    def step(self) -> float:
        """Clip, update, clear gradients. Returns the global gradient norm before clipping (nan if it overflowed)."""
        if self.is_deepspeed:
            whole = self._replicated_grad_norm() if self.session.zero_stage == 0 else None
            self.model.step()
            norm = whole if whole is not None else self.model.get_global_grad_norm()
            return float(norm) if norm is not None else float("nan")
        norm = self.session.accelerator.clip_grad_norm_(
            self.module.parameters(), self.max_grad_norm if self.max_grad_norm > 0 else float("inf")
        )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def _replicated_grad_norm(self) -> float:
        """Stage 0 clips without telling the norm; after the last backward every rank holds the reduced gradients."""
        gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    def align_buffers(self) -> None:
        """Give every rank rank 0's buffers (local BatchNorm statistics drift apart). All ranks call it."""
        self.session.broadcast_buffers(
            [buffer for _, buffer in self.module.named_buffers() if buffer.is_floating_point()]
        )


def open_engine(
    session: Session, module: nn.Module, optimizer: torch.optim.Optimizer, *, max_grad_norm: float, synchronised: bool
) -> Engine:
    """All ranks call it. synchronised: BatchNorm statistics over all ranks (parameters stay the same objects)."""
    if synchronised and session.world_size > 1:
        module = convert_batchnorm(module)
    return Engine(session, module, optimizer, max_grad_norm)
