"""The protocol of an engine: a model on the ranks, its gradients and its optimizer, with one face for the training step.

An engine averages gradients over the replicas of the model. The training step therefore scales a rank's loss sum by
replicas / global units, and the average becomes the sum over all ranks divided by the global units: exact on any number
of ranks and micro-batches.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from finetune.distributed.batchnorm import SyncedBatchNorm
from finetune.distributed.session import Session
from finetune.distributed.sharded_state import Reader, Shard
from finetune.distributed.stopwatch import Stopwatch
from finetune.models.stages import Stages

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]
Forward = Callable[[Any], Any]
"""A batch on the device -> outputs, through `Engine.model`."""
LossSum = Callable[[Any, Any, bool], torch.Tensor]
"""(outputs, batch, whether it is a dummy) -> scalar."""


@dataclass(frozen=True)
class EngineOptions:
    """max_grad_norm: gradients are clipped to this norm; 0: never. synchronized: BatchNorm statistics over all ranks.

    cut: the model in stages, for an engine whose ranks each hold some layers. master_weights: half-precision weights are
    updated through float32 copies of them (DeepSpeed does so anyhow).
    """

    max_grad_norm: float
    synchronized: bool = False
    cut: Callable[[nn.Module], Stages] | None = None
    master_weights: bool = False


@dataclass(frozen=True)
class Accumulated:
    """losses: the loss sum of each micro-batch, float64; 0 on a rank that does not own the outputs. Of this rank:
    forward_pass, the time of the forward passes; waiting_seconds, for the neighbors in a pipeline.
    """

    losses: list[torch.Tensor]
    forward_pass: Stopwatch
    waiting_seconds: float = 0.0


@dataclass(frozen=True)
class Rehearsal:
    """The passes of `Engine.rehearse`. forward: (model, batch on the device) -> outputs. loss_sum: (outputs, batch) ->
    scalar.
    """

    forward: Callable[[Any, Any], Any]
    loss_sum: Callable[[Any, Any], torch.Tensor]


class Engine(Protocol):
    """`accumulate` the gradients of a step's micro-batches, then `step`. All ranks make every call, unless it says so.

    What has a body here is right for ranks that each hold the whole module, unsharded.

    module: the bare module. model: what is called like the module. optimizer: None at inference.
    """

    session: Session
    module: nn.Module
    model: Any
    optimizer: Any
    accumulates_in_products: bool = False
    """Whether matrix products may add to gradients that are there (models/accumulated_products.py)."""

    @property
    def inner_optimizer(self) -> Any:
        """The optimizer that holds parameter groups and state: inside Accelerate's wrapper; None at inference."""
        return self.optimizer.optimizer if self.optimizer is not None else None

    @property
    def owns_outputs(self) -> bool:
        """Whether this rank's losses and predictions count: those of one rank of each replica do."""
        return self.session.is_replica_lead

    @property
    def needs_lockstep(self) -> bool:
        """Whether every micro-batch communicates, so that all ranks must run equally many."""
        return has_synced_batchnorm(self.module)

    @property
    def shards_weights(self) -> bool:
        """Whether a forward pass communicates, also without gradients, so that all ranks must run equally many."""
        return False

    @property
    def couples_ranks(self) -> bool:
        """Whether ranks need each other for the model's forward pass, because each holds a part of it: sharded weights, or
        the slices or stages of a replica.
        """
        return self.shards_weights or self.session.replica_size > 1

    @property
    def scales_loss(self) -> bool:
        """Whether the loss is scaled, as float16 needs it: a step whose gradients overflow is then skipped, and reports a norm
        that is not finite.
        """
        return self.session.accelerator.mixed_precision == "fp16"

    @property
    def passes(self) -> float:
        """What forward and backward pass take together, in forward passes."""
        return passes_of(self.module)

    @property
    def generating_model(self) -> nn.Module:
        """The model as `Task.sample` takes it: one that generates, and gives every rank its outputs."""
        return self.module

    @abstractmethod
    def accumulate(
        self,
        batches: Sequence[Any],
        forward: Forward,
        loss_sum: LossSum,
        scale: Callable[[], float],
        dummies: Sequence[bool] = (),
    ) -> Accumulated:
        """Forward and backward of every micro-batch; the gradients are reduced afterwards.

        scale: of the loss sums, for the gradients; called before each backward pass, and no sooner, since it may have to
        wait for other ranks. dummies: which batches are stand-ins that keep the ranks' collectives aligned; (): none.
        Statistics that the model keeps do not see them.
        """

    @property
    def rehearses_together(self) -> bool:
        """Whether `rehearse` communicates, so that all ranks must call it equally often, with batches of equal size."""
        return has_synced_batchnorm(self.module)

    @abstractmethod
    def rehearse(self, batch: Any, rehearsal: Rehearsal) -> None:
        """Forward and backward pass of a micro-batch that is not trained on, to see what it costs: before the first step, or
        between two. Gradients come to nothing, and statistics that the model keeps do not see it; random generators move on.
        """

    @abstractmethod
    def step(self) -> torch.Tensor:
        """Clip, update, clear gradients. The global gradient norm before clipping (not finite if it overflowed): a floating
        point scalar on the device, which nobody has waited for.
        """

    def set_learning_rate(self, learning_rate: float) -> None:
        """For the next step, in every parameter group; "lr_scale" of a group multiplies it. Any rank may call it."""
        for group in self.inner_optimizer.param_groups:
            group["lr"] = learning_rate * group.get("lr_scale", 1.0)

    def align_buffers(self) -> None:
        """Give every rank the first replica's floating-point buffers: local BatchNorm statistics drift apart."""
        buffers = [buffer for _, buffer in self.module.named_buffers() if buffer.is_floating_point()]
        self.session.broadcast_buffers(buffers)

    @abstractmethod
    def local_shards(self) -> Iterator[Shard]:
        """What this rank hands over to a checkpoint. Every element is handed over by exactly one rank.

        Nothing is communicated.
        """

    @abstractmethod
    def load_shards(self, read: Reader, scalars: dict[str, Any]) -> None:
        """Take this rank's weights, buffers and, where it trains, optimizer state through `read`; scalars: as stored."""

    @abstractmethod
    def scalars(self) -> dict[str, Any]:
        """What the optimizer keeps beside tensors."""

    def full_state_dict(self, *, trainable_only: bool = False) -> dict[str, torch.Tensor] | None:
        """The module's state dict on rank 0 (CPU tensors), what `save_pretrained` takes; None on the others.

        trainable_only: adapters and saved heads, without the frozen base.
        """
        return state_dict_on_main(self.session, self.module, trainable_only=trainable_only)


class SteppingEngine(Engine, Protocol):
    """An engine whose ranks run whole micro-batches, one after the other."""

    def accumulate(
        self,
        batches: Sequence[Any],
        forward: Forward,
        loss_sum: LossSum,
        scale: Callable[[], float],
        dummies: Sequence[bool] = (),
    ) -> Accumulated:
        """See Engine."""
        losses, forward_pass = [], Stopwatch(self.session.device)
        with self.micro_batches():
            for index, (batch, dummy) in enumerate(zip(batches, dummies or [False] * len(batches), strict=True)):
                batch = batch.to(self.session.device)
                with self.micro_batch(last=index == len(batches) - 1, dummy=dummy):
                    with forward_pass.running():
                        loss = loss_sum(forward(batch), batch, dummy)
                    self.backward(loss * scale())
                losses.append(loss.detach().double())
        return Accumulated(losses, forward_pass)

    def micro_batches(self) -> AbstractContextManager[None]:
        """Around all micro-batches of one step."""
        return nullcontext()

    @abstractmethod
    def micro_batch(self, *, last: bool, dummy: bool = False) -> AbstractContextManager[None]:
        """Around forward and backward of one micro-batch; gradients are reduced (where the engine waits for it) on the
        last.
        """

    @abstractmethod
    def backward(self, loss: torch.Tensor) -> None:
        """Inside `micro_batch`. loss: [], already scaled by replicas / global units."""


def passes_of(module: nn.Module) -> float:
    """Forward and backward pass together, in forward passes: gradients of activations take one more, those of weights one
    for all that are trained, and gradient checkpointing runs the forward pass again.
    """
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
    trained = sum(size for size, is_trained in sizes if is_trained) / max(sum(size for size, _ in sizes), 1)
    again = any(getattr(child, "gradient_checkpointing", False) for child in module.modules())
    return 2.0 + trained + again


def has_batchnorm(module: nn.Module) -> bool:
    """Whether a layer keeps statistics of batches."""
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules())


def has_synced_batchnorm(module: nn.Module) -> bool:
    """Whether a layer communicates its statistics in every micro-batch."""
    return any(isinstance(layer, SyncedBatchNorm) for layer in module.modules())


def state_dict_on_main(session: Session, module: nn.Module, *, trainable_only: bool) -> dict[str, torch.Tensor] | None:
    """`Engine.full_state_dict` of a rank that holds the whole module."""
    if not session.is_main:
        return None
    names = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    return {
        name: tensor.detach().cpu()
        for name, tensor in module.state_dict().items()
        if not trainable_only or name in names
    }
