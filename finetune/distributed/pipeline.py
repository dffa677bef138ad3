"""A replica of `split` ranks that each hold some layers, in a pipeline: the engine's face over a one-forward-one-backward
schedule (Narayanan et al., "PipeDream-2BW", 2021, section 3.2, as flushed at each step).

The schedule is our own: those of torch.distributed.pipelining want micro-batches of one size and cut them themselves,
while the dealing makes unequal ones, and images added as padding would enter BatchNorm's statistics. Every rank of a
replica collates the same micro-batches, so only activations and their gradients travel. Each stage's gradients are
averaged over the same stage of all replicas, so the rules of `engine.py` hold: same losses, norms and weights as one
process that accumulates the same micro-batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import convert_outputs_to_fp32, send_to_device
from torch import nn

from finetune.distributed.batchnorm import SyncedBatchNorm, convert_batchnorm, dummy_batch
from finetune.distributed.engine import Accumulated, Engine
from finetune.distributed.p2p import P2P
from finetune.distributed.session import Session
from finetune.distributed.stopwatch import Stopwatch
from finetune.errors import UserError
from finetune.models.stages import Stages


class PipelineEngine(Engine):
    """One stage of a replica: its weights, their optimiser state, and the way to its neighbours."""

    def __init__(  # it prepares nothing: no wrapper of Accelerate knows stages
        self, session: Session, stages: Stages, optimizer: torch.optim.Optimizer, max_grad_norm: float
    ) -> None:
        """All ranks call it, with a model on the CPU that is the same on all. What is not this rank's is let go of."""
        self.session, self.stages, self.max_grad_norm = session, stages, max_grad_norm
        self.module = stages.model
        self.is_deepspeed = False
        self.stage, self.last = session.rank % session.split, session.rank % session.split == session.split - 1
        self.has_batchnorm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.module.modules())
        stages.keep(self.stage)
        _move(self.module, session.device)
        self.parameters = [p for p in self.module.parameters() if p.requires_grad and not p.is_meta]
        self.optimizer = _over(optimizer, self.parameters)
        self.p2p = P2P(session)
        self.model = PipelineModel(stages, self.stage, self.p2p, session)

    @property
    def lockstep(self) -> bool:
        """Whether replicas communicate in every micro-batch: BatchNorm's statistics."""
        return any(isinstance(module, SyncedBatchNorm) for module in self.module.modules())

    @property
    def owns_outputs(self) -> bool:
        """The last stage has the outputs."""
        return self.last

    @property
    def buffers(self) -> list[torch.Tensor]:
        """Statistics of this stage's layers."""
        return [buffer for buffer in self.module.buffers() if buffer.is_floating_point() and not buffer.is_meta]

    @property
    def inner_optimizer(self) -> Any:
        return self.optimizer

    @property
    def whole(self) -> nn.Module:
        return _Shared(self.model, self.p2p)

    @property
    def holds_buffers(self) -> bool:
        return self.session.replica == 0

    def accumulate(
        self,
        batches: Sequence[Any],
        forward: Callable[[Any], Any],
        loss_sum: Callable[[Any, Any], torch.Tensor],
        scale: Callable[[], float],
    ) -> Accumulated:
        """As `Engine.accumulate`; stage s of p begins with p - 1 - s forward passes, then goes one forward, one back.

        At most p - s micro-batches' activations are alive on a rank. Dropout is drawn by each stage for itself.
        """
        if self.stage:
            torch.manual_seed((torch.initial_seed() + 7919 * self.stage) % 2**63)
        losses: list[torch.Tensor] = []
        forward_pass, waited = Stopwatch(self.session.device), self.p2p.waiting_seconds
        under_way: deque[tuple[Any, torch.Tensor]] = deque()
        ahead = min(len(batches), len(self.stages) - 1 - self.stage)
        for index in range(len(batches) + ahead):
            if index < len(batches):
                batch = batches[index].to(self.session.device)
                received = self.p2p.take_activation(_count(batch.inputs)) if self.stage else None
                with forward_pass.running():
                    result = self._forward(batch, received, forward, loss_sum)
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

    def _forward(
        self,
        batch: Any,
        received: torch.Tensor | None,
        forward: Callable[[Any], Any],
        loss_sum: Callable[[Any, Any], torch.Tensor],
    ) -> torch.Tensor:
        """The loss sum on the last stage, an activation on the others."""
        dummy = dummy_batch(self.module) if batch.dummy and self.has_batchnorm else nullcontext()
        with dummy, self.model.fed(received):
            result = forward(batch)
            return loss_sum(result, batch) if self.last else result

    def _backward(self, received: torch.Tensor | None, result: torch.Tensor) -> None:
        gradient = None if self.last else self.p2p.take_gradient(result)
        if result.requires_grad:
            result.backward(gradient)
        if received is not None:
            self.p2p.give_gradient(torch.zeros_like(received) if received.grad is None else received.grad)

    def _average_gradients(self) -> None:
        """Over the same stage of all replicas, in one message for each type of number."""
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

    def step(self) -> float:
        """Clip by the norm over all stages, update, clear gradients. Returns that norm before clipping."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        squares = torch.nn.utils.get_total_norm(gradients).detach().double().cpu().square()
        dist.all_reduce(squares, group=self.p2p.replica)
        norm = squares.sqrt().float()
        most = self.max_grad_norm if self.max_grad_norm > 0 else float("inf")
        torch.nn.utils.clip_grads_with_norm_(self.parameters, most, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def align_buffers(self) -> None:
        """Give the same stage of every replica the buffers of the first replica's. All ranks call it."""
        if self.session.replicas > 1:
            for buffer in self.buffers:
                dist.broadcast(buffer, src=self.stage, group=self.p2p.peers)


class PipelineModel(nn.Module):
    """The replica's model, called like the module itself; a rank's call runs its stage.

    The last stage's call gives the model's outputs, the others' their activations. Within `fed`, the schedule moves
    activations; elsewhere (evaluation) each call takes its input from the stage before and hands on its result.
    """

    def __init__(self, stages: Stages, stage: int, p2p: P2P, session: Session) -> None:
        super().__init__()
        self.module, self.stages, self.stage, self.p2p = stages.model, stages, stage, p2p
        self._accelerator = session.accelerator
        self._fed: tuple[Any] | None = None

    def forward(self, **inputs: Any) -> Any:
        if self._fed is not None:
            return self._run(self._fed[0], inputs)
        received = self.p2p.take_activation(_count(inputs)) if self.stage else None
        result = self._run(received, inputs)
        if self.stage < len(self.stages) - 1:
            self.p2p.give_activation(result)
            self.p2p.finish()
        return result

    @contextmanager
    def fed(self, received: torch.Tensor | None) -> Iterator[None]:
        """Within, a call runs on what the schedule received."""
        self._fed = (received if received is None else received.requires_grad_(),)
        try:
            yield
        finally:
            self._fed = None

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Those of this stage."""
        return (parameter for parameter in super().parameters(recurse) if not parameter.is_meta)

    def _run(self, received: Any, inputs: dict[str, Any]) -> Any:
        def call() -> Any:
            with self._accelerator.autocast():
                outputs = self.module(**inputs)
            return outputs if self._accelerator.mixed_precision == "no" else _in_fp32(outputs)

        return self.stages.run(self.stage, received, call)


class _Shared(nn.Module):
    """The pipeline, whose last stage gives its outputs to all ranks of the replica. They all call it alike."""

    def __init__(self, model: PipelineModel, p2p: P2P) -> None:
        super().__init__()
        self.model, self.p2p, self.training = model, p2p, model.training

    def forward(self, **inputs: Any) -> Any:
        outputs = self.model(**inputs)
        is_last = self.model.stage == len(self.model.stages) - 1
        box = [send_to_device(outputs, "cpu") if is_last else None]
        dist.broadcast_object_list(box, src=self.p2p.last_rank, group=self.p2p.replica)
        return send_to_device(box[0], next(self.parameters()).device)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        return self.model.parameters(recurse)


def open_pipeline(
    session: Session,
    stages: Stages,
    optimizer: torch.optim.Optimizer,
    *,
    max_grad_norm: float,
    synchronised: bool,
) -> PipelineEngine:
    """All ranks call it. optimizer: over all the model's weights, without state yet. synchronised: BatchNorm statistics
    over the replicas.

    Raises: UserError if stages and ranks of a replica differ in number.
    """
    if len(stages) != session.split:
        raise UserError(f"{len(stages)} stages for replicas of {session.split} ranks", where="parallel.pipeline")
    engine = PipelineEngine(session, stages, optimizer, max_grad_norm)
    if session.replicas > 1:
        for tensor in (
            *engine.parameters,
            *engine.buffers,
        ):  # all were built alike; as DistributedDataParallel, be sure
            dist.broadcast(tensor.detach(), src=engine.stage, group=engine.p2p.peers)
        if synchronised:
            convert_batchnorm(engine.module, engine.p2p.peers)
    return engine


def gather_stages(engine: PipelineEngine, *, trainable_only: bool) -> dict[str, torch.Tensor] | None:
    """The whole module's state dict on rank 0 (CPU tensors); None on the others. All ranks call it."""
    if engine.session.replica:
        return None
    learnt = {name for name, parameter in engine.module.named_parameters() if parameter.requires_grad}
    collected = {}
    for name, tensor in engine.module.state_dict().items():
        owner = engine.stages.owners[name]
        if trainable_only and name not in learnt:
            continue
        if engine.stage == 0:
            collected[name] = tensor.detach().cpu() if owner == 0 else torch.empty(tensor.shape, dtype=tensor.dtype)
            if owner:
                dist.recv(collected[name], src=owner, group=engine.p2p.replica)
        elif engine.stage == owner:
            dist.send(tensor.detach().cpu().contiguous(), dst=0, group=engine.p2p.replica)
    return collected if engine.stage == 0 else None


def _count(inputs: dict[str, Any]) -> int:
    """Examples in a batch's inputs."""
    return next(len(value) for value in inputs.values() if torch.is_tensor(value))


def _over(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser with these parameters alone; it has no state yet."""
    own = {id(parameter) for parameter in parameters}
    for group in optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) in own]
    return optimizer


def _move(module: nn.Module, device: torch.device) -> None:
    """To the device, but for what is on `meta`."""
    module._apply(lambda tensor: tensor if tensor.is_meta else tensor.to(device))


def _in_fp32(outputs: Any) -> Any:
    return convert_outputs_to_fp32(lambda: outputs)()


def idle_share(stages: int, micro_batches: int) -> float:
    """The bubble: of a step, the part in which a stage has nothing to do, if all take equally long (Huang et al., "GPipe",
    2019, section 2.3).
    """
    return (stages - 1) / (micro_batches + stages - 1)
