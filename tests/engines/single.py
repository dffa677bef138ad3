"""The smallest engine: one process, plain PyTorch, no wrapper. It proves that the protocol is all an engine must know."""

from contextlib import nullcontext

from finetune.distributed.engines import engine as shared
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


class SingleEngine:
    """make_optimizer None: for inference."""

    owns_outputs, needs_lockstep, shards_weights, rehearses_together = True, False, False, False

    def __init__(self, session, module, make_optimizer, options):
        assert session.world_size == 1
        self.session, self.max_grad_norm = session, options.max_grad_norm
        self.module = self.model = self.generating_model = module.to(session.device)
        self.optimizer = make_optimizer(module) if make_optimizer else None

    @property
    def passes(self):
        return shared.passes_of(self.module)

    def accumulate(self, batches, forward, loss_sum, scale, dummies=()):
        return shared.run_in_turn(self, batches, forward, loss_sum, scale, dummies)

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

    def set_learning_rate(self, learning_rate):
        shared.set_learning_rate(self.optimizer, learning_rate)

    def align_buffers(self):
        pass

    def local_shards(self):
        return shards_of(self.module, held_whole(self.module, self.optimizer), buffers=True)

    def load_shards(self, read, scalars):
        if self.optimizer is not None:
            initialize_state(self.optimizer, own_groups(self.optimizer), int(scalars["optimizer_step"]))
        load_held(self.module, held_whole(self.module, self.optimizer), read)

    def scalars(self):
        return optimizer_scalars(self.optimizer)

    def full_state_dict(self, *, trainable_only=False):
        return shared.state_dict_on_main(self.session, self.module, trainable_only=trainable_only)
