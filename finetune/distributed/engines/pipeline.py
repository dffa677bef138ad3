"""A replica of several ranks that each hold some layers, in a pipeline: a one-forward-one-backward schedule (Narayanan et
al., "PipeDream-2BW", 2021, section 3.2, flushed at each step).

The schedule is our own: those of torch.distributed.pipelining want micro-batches of one size and cut them themselves,
while our assignment makes unequal ones, and images added as padding would enter BatchNorm's statistics. Every rank of a
replica collates the same micro-batches, so only activations and their gradients are sent. Each stage's gradients are
averaged over the same stage of all replicas, so the rules of `engine.py` hold: same losses, norms and weights as one
process that accumulates the same micro-batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from finetune.distributed.batchnorm import convert_batchnorm, dummy_batch
from finetune.distributed.engines.engine import (
    Accumulated,
    Engine,
    EngineOptions,
    Forward,
    LossSum,
    MakeOptimizer,
    Rehearsal,
    has_batchnorm,
)
from finetune.distributed.engines.p2p import P2P
from finetune.distributed.engines.pipeline_model import PipelineModel, SharedOutputs, examples_in
from finetune.distributed.engines.rehearsal import unseen_by_statistics
from finetune.distributed.gradient_norm import total_norm
from finetune.distributed.session import Session
from finetune.distributed.sharded_state import (
    Reader,
    Shard,
    held_whole,
    initialize_state,
    load_held,
    optimizer_scalars,
    own_groups,
    shards_of,
)
from finetune.distributed.stopwatch import Stopwatch
from finetune.errors import UserError
from finetune.models.stages import Stages


class PipelineEngine(Engine):
    """One stage of a replica: its weights, their optimizer state, and the messages to its neighbors."""

    def __init__(
        self, session: Session, stages: Stages, make_optimizer: MakeOptimizer | None, options: EngineOptions
    ) -> None:
        """With a model on the CPU that is the same on all ranks. What is not this rank's is freed.

        No wrapper of Accelerate knows stages, so that nothing is prepared.
        """
        self.session, self.stages, self.max_grad_norm = session, stages, options.max_grad_norm
        self.module = stages.model
        self.stage = session.rank % session.replica_size
        self.last = self.stage == session.replica_size - 1
        self.has_batchnorm = has_batchnorm(self.module)
        stages.keep(self.stage)
        self.module._apply(lambda tensor: tensor if tensor.is_meta else tensor.to(session.device))
        self.parameters = [p for p in self.module.parameters() if p.requires_grad and not p.is_meta]
        self.optimizer: Any = make_optimizer(self.module) if make_optimizer is not None else None
        self.p2p = P2P(session)
        self.model: Any = PipelineModel(stages, self.stage, self.p2p, session)

    @property
    def owns_outputs(self) -> bool:
        """The last stage has the outputs."""
        return self.last

    @property
    def rehearses_together(self) -> bool:
        """Stages wait for each other."""
        return True

    @property
    def generating_model(self) -> nn.Module:
        return SharedOutputs(self.model, self.p2p)

    @property
    def inner_optimizer(self) -> Any:
        """No wrapper is around it."""
        return self.optimizer

    @property
    def buffers(self) -> list[torch.Tensor]:
        """Statistics of this stage's layers."""
        return [buffer for buffer in self.module.buffers() if buffer.is_floating_point() and not buffer.is_meta]

    def accumulate(
        self,
        batches: Sequence[Any],
        forward: Forward,
        loss_sum: LossSum,
        scale: Callable[[], float],
        dummies: Sequence[bool] = (),
    ) -> Accumulated:
        """Stage s of p begins with p - 1 - s forward passes, then alternates forward and backward.

        At most p - s micro-batches' activations are alive on a rank. Dropout is drawn by each stage for itself.
        """
        if self.stage:
            torch.manual_seed((torch.initial_seed() + 7919 * self.stage) % 2**63)
        losses: list[torch.Tensor] = []
        forward_pass, waited = Stopwatch(self.session.device), self.p2p.waiting_seconds
        under_way: deque[tuple[Any, torch.Tensor]] = deque()
        ahead = min(len(batches), len(self.stages) - 1 - self.stage)
        dummies = dummies or [False] * len(batches)
        for index in range(len(batches) + ahead):
            if index < len(batches):
                batch = batches[index].to(self.session.device)
                received = self.p2p.take_activation(examples_in(batch.inputs)) if self.stage else None
                with forward_pass.running():
                    result = self._forward(batch, received, forward, loss_sum, dummies[index])
                if self.last:
                    losses.append(result.detach().double())
                    result = result * scale()
                else:
                    losses.append(torch.zeros((), dtype=torch.float64))
                    self.p2p.give_activation(result.detach())
                under_way.append((received, result))
            if index >= ahead:
                self._backward(*under_way.popleft())
        self.p2p.meet()
        if self.session.replicas > 1:
            self._average_gradients()
        return Accumulated(losses, forward_pass, self.p2p.waiting_seconds - waited)

    def rehearse(self, batch: Any, rehearsal: Rehearsal) -> None:
        """A loss of zero adds nothing to the gradients."""
        with unseen_by_statistics(self.module):
            self.accumulate(
                [batch],
                lambda batch: rehearsal.forward(self.model, batch),
                lambda outputs, batch, dummy: rehearsal.loss_sum(outputs, batch),
                lambda: 0.0,
                (True,),
            )

    def _forward(
        self, batch: Any, received: torch.Tensor | None, forward: Forward, loss_sum: LossSum, dummy: bool
    ) -> torch.Tensor:
        """The loss sum on the last stage, an activation on the others."""
        unseen = dummy_batch(self.module) if dummy and self.has_batchnorm else nullcontext()
        with unseen, self.model.fed(received):
            result = forward(batch)
            return loss_sum(result, batch, dummy) if self.last else result

    def _backward(self, received: torch.Tensor | None, result: torch.Tensor) -> None:
        gradient = None if self.last else self.p2p.take_gradient(result)
        if result.requires_grad:
            result.backward(gradient)
        if received is not None:
            self.p2p.give_gradient(torch.zeros_like(received) if received.grad is None else received.grad)

    def _average_gradients(self) -> None:
        """Over the same stage of all replicas, in one message for each dtype."""
        by_type: dict[torch.dtype, list[torch.Tensor]] = {}
        for parameter in self.parameters:
            if parameter.grad is not None:
                by_type.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        for gradients in by_type.values():
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            dist.all_reduce(flat, group=self.p2p.peers)
            flat /= self.session.replicas
            parts = flat.split([gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def step(self) -> torch.Tensor:
        """Clips by the norm over all stages."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        squares = total_norm(gradients).cpu().square()  # stages meet over gloo
        dist.all_reduce(squares, group=self.p2p.replica)
        norm = squares.sqrt()
        if self.max_grad_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.max_grad_norm, norm.float())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def align_buffers(self) -> None:
        """Give the same stage of every replica the buffers of the first replica's."""
        if self.session.replicas > 1:
            for buffer in self.buffers:
                dist.broadcast(buffer, src=self.stage, group=self.p2p.peers)

    def local_shards(self) -> Iterator[Shard]:
        session = self.session
        held = held_whole(self.module, self.optimizer, writer=session.replica, writers=session.replicas)
        return shards_of(self.module, held, buffers=session.replica == 0)

    def load_shards(self, read: Reader, scalars: dict[str, Any]) -> None:
        if self.optimizer is not None:
            initialize_state(self.optimizer, own_groups(self.optimizer), int(scalars["optimizer_step"]))
        load_held(self.module, held_whole(self.module, self.optimizer), read)

    def scalars(self) -> dict[str, Any]:
        return optimizer_scalars(self.optimizer)

    def full_state_dict(self, *, trainable_only: bool = False) -> dict[str, torch.Tensor] | None:
        """Sent to rank 0 by the stages of the first replica, one tensor at a time."""
        if self.session.replica:
            return None
        learned = {name for name, parameter in self.module.named_parameters() if parameter.requires_grad}
        collected = {}
        for name, tensor in self.module.state_dict().items():
            owner = self.stages.owners[name]
            if trainable_only and name not in learned:
                continue
            if self.stage == 0:
                collected[name] = tensor.detach().cpu() if owner == 0 else torch.empty(tensor.shape, dtype=tensor.dtype)
                if owner:
                    dist.recv(collected[name], src=owner, group=self.p2p.replica)
            elif self.stage == owner:
                dist.send(tensor.detach().cpu().contiguous(), dst=0, group=self.p2p.replica)
        return collected if self.stage == 0 else None


def open_pipeline(
    session: Session, module: nn.Module, make_optimizer: MakeOptimizer | None, options: EngineOptions
) -> PipelineEngine:
    """All ranks call it. Raises: UserError if stages and ranks of a replica differ in number."""
    if options.cut is None:
        raise ValueError("a pipeline needs EngineOptions.cut")
    stages = options.cut(module)
    if len(stages) != session.replica_size:
        raise UserError(f"{len(stages)} stages for replicas of {session.replica_size} ranks", where="parallel.pipeline")
    engine = PipelineEngine(session, stages, make_optimizer, options)
    if session.replicas > 1:
        # All were built alike; as DistributedDataParallel does, be sure.
        for tensor in (*engine.parameters, *engine.buffers):
            dist.broadcast(tensor.detach(), src=engine.stage, group=engine.p2p.peers)
        if options.synchronized:
            convert_batchnorm(engine.module, engine.p2p.peers)
    return engine


def idle_share(stages: int, micro_batches: int) -> float:
    """The bubble: of a step, the part in which a stage has nothing to do, if all take equally long (Huang et al., "GPipe",
    2019, section 2.3).
    """
    return (stages - 1) / (micro_batches + stages - 1)
