"""This process among its peers: it joins the process group, reduces, gathers, waits. The only way to other ranks."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import check_cuda_p2p_ib_support
from torch.distributed.distributed_c10d import _get_default_store

from finetune.distributed.engines.accelerator import GIVE_UP_AFTER, forget_choices, open_accelerator
from finetune.distributed.env import DistributedEnv, as_environ, from_environ
from finetune.distributed.failure import PeerFailed
from finetune.distributed.meeting import ADDRESS, open_store, stay_inside
from finetune.distributed.prebuild import Notify
from finetune.distributed.temporary_folder import remove_shared_memory
from finetune.models.device import share_cores
from finetune.models.kernel_choices import choose_kernels

ARRIVAL_SECONDS = 0.01  # between two looks at the store
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

    A replica is `split` ranks in a row that hold one copy of the model together (one rank where the model is not
    split); the examples are shared out over the replicas.
    """

    def __init__(self, accelerator: Accelerator, deepspeed_config: dict[str, Any] | None, split: int = 1) -> None:
        self.accelerator = accelerator
        self.deepspeed_config = deepspeed_config
        self.rank: int = accelerator.process_index
        self.world_size: int = accelerator.num_processes
        self.split = split
        self.replica, self.replicas = self.rank // split, self.world_size // split
        self.local_world_size = int(os.environ["LOCAL_WORLD_SIZE"])
        self.device: torch.device = accelerator.device
        self._arrivals: dict[str, int] = {}  # place -> how often this rank has come there
        # Numbers and objects of the control plane travel over gloo, so that they never queue behind gradients.
        self._control = dist.new_group(backend="gloo", timeout=GIVE_UP_AFTER) if self.device.type != "cpu" else None

    @classmethod
    def open(
        cls,
        deepspeed_config: dict[str, Any] | None,
        *,
        precision: str,
        cpu: bool,
        split: int = 1,
        notify: Notify = lambda line: None,
    ) -> Session:
        """Join the process group. All ranks call it, with equal arguments, before anything else.

        deepspeed_config: the resolved one, None where another engine trains; ZeRO-3 shards weights at load by it.
        notify: takes lines for the user on rank 0, such as what DeepSpeed is going to compile.
        Raises: FinetuneError if what Accelerate opened is not what was asked for.
        """
        env = from_environ() or _alone()
        if not (env.master_addr and env.master_port):  # one rank, of a user's own RANK=0 WORLD_SIZE=1
            env = replace(env, master_addr=ADDRESS, master_port=_alone().master_port)
        os.environ.update(as_environ(env))
        forget_choices(os.environ)
        share_cores(env.local_world_size)
        if cpu:
            os.environ["DS_ACCELERATOR"] = "cpu"
            os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
        else:
            _choose_gpu(env)
            choose_kernels(precision)
        if env.local_world_size == env.world_size:
            stay_inside(os.environ)
        if not dist.is_initialized():
            _open_process_group(cpu, env)
        tell = notify if env.rank == 0 else lambda line: None
        accelerator = open_accelerator(deepspeed_config, precision=precision, cpu=cpu, notify=tell)
        session = cls(accelerator, deepspeed_config, split)
        session.wait()
        _unlink_shared_memory(session.rank)
        return session

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def is_replica_lead(self) -> bool:
        """The first rank of its replica: its values count where all ranks of the replica have the same."""
        return self.rank % self.split == 0

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

    def arrive(self, place: str, *, seconds: float | None) -> bool:
        """Whether every rank has come to this place, or does within `seconds` (None: within the limit of collectives).

        All ranks call it, but a rank may have missed collectives before: this is none, it counts in the group's store.
        """
        self._arrivals[place] = self._arrivals.get(place, 0) + 1
        key, expected = f"finetune/{place}", self._arrivals[place] * self.world_size
        store = _get_default_store()
        ends = time.monotonic() + (GIVE_UP_AFTER.total_seconds() if seconds is None else seconds)
        arrived = store.add(key, 1)
        while arrived < expected and time.monotonic() < ends:
            time.sleep(ARRIVAL_SECONDS)
            arrived = store.add(key, 0)
        return arrived >= expected

    def count(self, name: str, amount: int = 1) -> int:
        """Add to a counter that the ranks share, and return its sum so far, this amount included; it begins at 0.

        No collective: any rank calls it whenever it likes, from any thread. `amount` 0 reads it.
        """
        with _store_errors():
            return int(_get_default_store().add(f"finetune/counter/{name}", amount))

    def announce(self, name: str, text: str) -> None:
        """Let every rank read `text` under a name, see `announced`. No collective."""
        with _store_errors():
            _get_default_store().set(f"finetune/announced/{name}", text)

    def announced(self, name: str) -> str | None:
        """What some rank announced under a name; None if none has yet. Never waits."""
        key = f"finetune/announced/{name}"
        with _store_errors():
            store = _get_default_store()
            return store.get(key).decode() if store.check([key]) else None

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


@contextmanager
def _store_errors() -> Iterator[None]:
    """The store is gone when rank 0 is: that is no failure of this rank, and not of what it works on."""
    try:
        yield
    except RuntimeError as error:
        raise PeerFailed(f"rank 0 can no longer be reached: {error}") from error


def shares_gpu() -> bool:
    """Whether this host has more ranks than GPUs."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) > torch.cuda.device_count()


def sharing_note() -> str:
    """What to report where ranks share a GPU, or see too few of them to know better; "" elsewhere."""
    if not shares_gpu():
        return ""
    ranks, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    return (
        f"note: the {ranks} ranks of this host see {gpus} GPU{'' if gpus == 1 else 's'}: gradients travel over gloo, through "
        "main memory. If each rank has a GPU of its own, let it see those of the others (srun --gpu-bind=none), for NCCL."
    )


def _choose_gpu(env: DistributedEnv) -> None:
    """Libraries take the GPU of the number LOCAL_RANK; where ranks share GPUs, it is no rank any more."""
    if shares_gpu():
        os.environ["LOCAL_RANK"] = str(env.local_rank % max(1, torch.cuda.device_count()))


def _alone() -> DistributedEnv:
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return DistributedEnv(0, 1, 0, 1, "none", ADDRESS, probe.getsockname()[1])


def _open_process_group(cpu: bool, env: DistributedEnv) -> None:
    store = open_store(env, GIVE_UP_AFTER)
    options: dict[str, Any] = {"timeout": GIVE_UP_AFTER}
    if store is not None:
        options |= {"store": store, "rank": env.rank, "world_size": env.world_size}
    if cpu:
        dist.init_process_group("gloo", **options)
        return
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    if not check_cuda_p2p_ib_support():  # GeForce RTX 40xx with old drivers; Accelerate refuses them otherwise
        os.environ.setdefault("NCCL_P2P_DISABLE", "1")
        os.environ.setdefault("NCCL_IB_DISABLE", "1")
    if shares_gpu():  # NCCL refuses two ranks on one GPU
        dist.init_process_group("gloo", **options)
    else:
        dist.init_process_group("nccl", device_id=device, **options)


def _unlink_shared_memory(rank: int) -> None:
    """DeepSpeed's CPU collectives leave 66 MB per rank and run in /dev/shm forever. Once every rank has mapped it, the
    name is not needed, and without the name the memory is freed when the ranks end, however they end.
    """
    remove_shared_memory(os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"], rank)
