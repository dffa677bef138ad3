"""A whole replica on every rank: PyTorch's DistributedDataParallel, as Accelerate prepares it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from finetune.distributed.batchnorm import convert_batchnorm, dummy_batch
from finetune.distributed.engines.engine import (
    EngineOptions,
    MakeOptimizer,
    Rehearsal,
    SteppingEngine,
    has_batchnorm,
)
from finetune.distributed.engines.master_weights import MasterWeights
from finetune.distributed.engines.rehearsal import rehearse_apart
from finetune.distributed.gradient_norm import clip_gradients
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
from finetune.models.accumulated_products import accumulating
from finetune.models.kept_casts import keeping_casts


class DdpEngine(SteppingEngine):
    """Weights, gradients and optimizer state are the same on every rank."""

    accumulates_in_products = True

    def __init__(
        self, session: Session, module: nn.Module, make_optimizer: MakeOptimizer | None, options: EngineOptions
    ) -> None:
        self.session, self.module, self.max_grad_norm = session, module, options.max_grad_norm
        if options.synchronized and session.world_size > 1:
            convert_batchnorm(module)
        module.to(session.device)
        accelerator = session.accelerator
        # Alone, gradients have nobody to be averaged with: the wrapper would copy each into its buckets, and keep those.
        plain = make_optimizer is None or session.world_size == 1
        self.model: Any = accelerator.prepare_model(module, evaluation_mode=plain)
        self.optimizer: Any = None
        self.masters: MasterWeights | None = None
        if make_optimizer is not None:
            optimizer = make_optimizer(module)
            self.masters = MasterWeights(optimizer) if options.master_weights else None
            self.optimizer = accelerator.prepare(optimizer)
        self.has_batchnorm = has_batchnorm(module)

    def micro_batches(self) -> AbstractContextManager[None]:
        """See SteppingEngine. Weights do not change in between, and are whole all the time."""
        return keeping_casts()

    @contextmanager
    def micro_batch(self, *, last: bool, dummy: bool = False) -> Iterator[None]:
        quiet: Any = nullcontext() if last else self.session.accelerator.no_sync(self.model)
        handed_over = last and self.session.world_size > 1  # gradients, one by one, to DistributedDataParallel
        with (
            quiet,
            nullcontext() if handed_over else accumulating(),
            dummy_batch(self.module) if dummy and self.has_batchnorm else nullcontext(),
        ):
            yield

    def backward(self, loss: torch.Tensor) -> None:
        self.session.accelerator.backward(loss)

    def rehearse(self, batch: Any, rehearsal: Rehearsal) -> None:
        rehearse_apart(self.module, batch, rehearsal)

    def step(self) -> torch.Tensor:
        if self.masters is not None:
            return self.masters.step(self.module, self.optimizer.step, self.max_grad_norm)
        self.session.accelerator.unscale_gradients(self.optimizer)
        norm = clip_gradients(self.module.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def local_shards(self) -> Iterator[Shard]:
        session = self.session
        held = self._held(writer=session.replica, writers=session.replicas)
        return shards_of(self.module, held, buffers=session.is_main)

    def _held(self, **share: int) -> Iterator[Held | None]:
        masters = {} if self.masters is None else {"master": self.masters.of}
        return held_whole(self.module, self.inner_optimizer, **share, **masters)  # type: ignore[arg-type]

    def load_shards(self, read: Reader, scalars: dict[str, Any]) -> None:
        optimizer = self.inner_optimizer
        if optimizer is not None:
            initialize_state(optimizer, own_groups(optimizer), int(scalars["optimizer_step"]))
        load_held(self.module, self._held(), read)
        if self.masters is not None:
            self.masters.give_weights()

    def scalars(self) -> dict[str, Any]:
        return optimizer_scalars(self.inner_optimizer)


def open_ddp(
    session: Session, module: nn.Module, make_optimizer: MakeOptimizer | None, options: EngineOptions
) -> DdpEngine:
    """All ranks call it."""
    return DdpEngine(session, module, make_optimizer, options)
