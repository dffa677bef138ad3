"""This process among its peers: it joins the process group, reduces, gathers, waits. The only way to other ranks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator

from finetune.distributed.engines.accelerator import GIVE_UP_AFTER, forget_choices, open_accelerator
from finetune.distributed.env import as_environ, from_environ
from finetune.distributed.failure import PeerFailed
from finetune.distributed.group_store import GroupStore
from finetune.distributed.prebuild import Notify
from finetune.distributed.process_group import choose_gpu, lone_environment, open_process_group
from finetune.distributed.rendezvous import ADDRESS, stay_inside
from finetune.distributed.temporary_folder import remove_shared_memory
from finetune.models.device import share_cores
from finetune.models.kernel_choices import choose_kernels

GLOO_LETS_GO = 0.05  # seconds, in which this thread does not hold Python's lock


class PendingSum:
    """Values on their way to their sum over ranks."""

    def __init__(self, tensor: torch.Tensor, work: Any) -> None:
        self._tensor, self._work = tensor, work

    def wait(self) -> list[float]:
        """The sums, in the order of the values, once every rank has given its own. May be called again."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        return self._tensor.tolist()


class Session:
    """One rank's view. Open it before the model is built, so that ZeRO-3 shards at load.

    A replica is `replica_size` ranks in a row that hold one copy of the model together (one rank where the model is not
    split); the examples are shared out over the replicas.
    """

    def __init__(
        self, accelerator: Accelerator, deepspeed_config: dict[str, Any] | None, replica_size: int = 1
    ) -> None:
        self.accelerator = accelerator
        self.deepspeed_config = deepspeed_config
        self.rank: int = accelerator.process_index
        self.world_size: int = accelerator.num_processes
        self.replica_size = replica_size
        self.replica, self.replicas = self.rank // replica_size, self.world_size // replica_size
        self.local_world_size = int(os.environ["LOCAL_WORLD_SIZE"])
        self.device: torch.device = accelerator.device
        self.store = GroupStore(self.world_size)
        # Numbers and objects of the control plane travel over gloo, so that they never queue behind gradients.
        self._control = dist.new_group(backend="gloo", timeout=GIVE_UP_AFTER) if self.device.type != "cpu" else None

    @classmethod
    def open(
        cls,
        deepspeed_config: dict[str, Any] | None,
        *,
        precision: str,
        cpu: bool,
        replica_size: int = 1,
        notify: Notify = lambda line: None,
    ) -> Session:
        """Join the process group. All ranks call it, with equal arguments, before anything else.

        deepspeed_config: the resolved one, None where another engine trains; ZeRO-3 shards weights at load by it.
        notify: takes lines for the user on rank 0, such as what DeepSpeed is going to compile.
        Raises: FinetuneError if what Accelerate opened is not what was asked for.
        """
        env = from_environ() or lone_environment()
        if not (env.master_addr and env.master_port):  # one rank, of a user's own RANK=0 WORLD_SIZE=1
            env = replace(env, master_addr=ADDRESS, master_port=lone_environment().master_port)
        os.environ.update(as_environ(env))
        forget_choices(os.environ)
        share_cores(env.local_world_size)
        if cpu:
            os.environ["DS_ACCELERATOR"] = "cpu"
            os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
        else:
            choose_gpu(env)
            choose_kernels(precision)
        if env.local_world_size == env.world_size:
            stay_inside(os.environ)
        if not dist.is_initialized():
            open_process_group(cpu, env)
        tell = notify if env.rank == 0 else lambda line: None
        accelerator = open_accelerator(deepspeed_config, precision=precision, cpu=cpu, notify=tell)
        session = cls(accelerator, deepspeed_config, replica_size)
        session.wait()
        _unlink_shared_memory(session.rank)
        return session

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def is_replica_lead(self) -> bool:
        """The first rank of its replica: its values count where all ranks of the replica have the same."""
        return self.rank % self.replica_size == 0

    def sum(self, *values: float) -> list[float]:
        """Each value summed over ranks, in float64. All ranks call it."""
        return self.begin_sum(*values).wait()

    def begin_sum(self, *values: float) -> PendingSum:
        """As `sum`, without waiting for a rank that comes later. All ranks call it, and wait for it some time."""
        tensor = torch.tensor(values, dtype=torch.float64)
        return PendingSum(tensor, dist.all_reduce(tensor, group=self._control, async_op=True))

    def maximum(self, *values: float) -> list[float]:
        """Each value's maximum over ranks. All ranks call it."""
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self._control)
        return tensor.tolist()

    def add_up(self, value: torch.Tensor) -> torch.Tensor:
        """Summed over ranks, in place, on its device, without waiting for a GPU. All ranks call it, with equal shapes."""
        if self.world_size > 1:
            dist.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        """Whether it is true on some rank. All ranks call it."""
        return self.maximum(float(flag))[0] > 0

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on rank 0; an empty list elsewhere. All ranks call it."""
        received: list[Any] | None = [None] * self.world_size if self.is_main else None
        dist.gather_object(value, received, dst=0, group=self._control)
        return received or []

    def all_gather(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on every rank. All ranks call it."""
        received: list[Any] = [None] * self.world_size
        dist.all_gather_object(received, value, group=self._control)
        return received

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value on every rank. All ranks call it."""
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._control)
        return box[0]

    def wait(self) -> None:
        """Wait until every rank calls it. All ranks call it."""
        self.sum(0.0)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Rank 0 does the work, then the others find it in the cache. After an error on rank 0 the others end quietly."""
        if self.is_main:
            try:
                yield
            except BaseException:
                self.broadcast(False)
                raise
            self.broadcast(True)
        elif self.broadcast(None):
            yield
        else:
            raise PeerFailed("rank 0 failed while preparing")

    def broadcast_buffers(self, buffers: Sequence[torch.Tensor]) -> None:
        """Rank 0's buffers on every rank, in place. All ranks call it, with equal shapes in the same order."""
        for buffer in buffers:
            dist.broadcast(buffer, src=0)

    def close(self) -> None:
        """Leave the process group. Safe to call twice.

        Whoever drops the last reference to a gloo group (an engine, if it lives longer) joins its threads with Python's
        lock held, and hangs if one of them needs the lock to let go of its last tensors: they get the time before.
        """
        if dist.is_initialized():
            time.sleep(GLOO_LETS_GO)
            dist.destroy_process_group()


def _unlink_shared_memory(rank: int) -> None:
    """DeepSpeed's CPU collectives leave 66 MB per rank and run in /dev/shm forever. Once every rank has mapped it, the
    name is not needed, and without the name the memory is freed when the ranks end, however they end.
    """
    remove_shared_memory(os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"], rank)
