"""The smallest engine: one process, plain PyTorch, no wrapper. It proves that the protocol is all an engine must know."""

from contextlib import nullcontext

from finetune.distributed.engines.engine import SteppingEngine
from finetune.distributed.engines.rehearsal import rehearse_apart
from finetune.distributed.gradient_norm import clip_gradients
from finetune.distributed.sharded_state import (
    held_whole,
    initialize_state,
    load_held,
    optimizer_scalars,
    own_groups,
    shards_of,
)


class SingleEngine(SteppingEngine):
    """make_optimizer None: for inference."""

    def __init__(self, session, module, make_optimizer, options):
        assert session.world_size == 1
        self.session, self.max_grad_norm = session, options.max_grad_norm
        self.module = self.model = module.to(session.device)
        self.optimizer = make_optimizer(module) if make_optimizer else None

    @property
    def inner_optimizer(self):
        return self.optimizer

    def micro_batch(self, *, last, dummy=False):
        return nullcontext()

    def backward(self, loss):
        loss.backward()

    def rehearse(self, batch, rehearsal):
        rehearse_apart(self.module, batch, rehearsal)

    def step(self):
        norm = clip_gradients(self.module.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def local_shards(self):
        return shards_of(self.module, held_whole(self.module, self.optimizer), buffers=True)

    def load_shards(self, read, scalars):
        if self.optimizer is not None:
            initialize_state(self.optimizer, own_groups(self.optimizer), int(scalars["optimizer_step"]))
        load_held(self.module, held_whole(self.module, self.optimizer), read)

    def scalars(self):
        return optimizer_scalars(self.optimizer)
