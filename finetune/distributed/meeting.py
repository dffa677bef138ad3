"""Where the ranks of one launch meet: a file, or a port of the loopback interface, wherever they run on one machine.

A process group needs a store in which its ranks find each other, and each rank listens for its peers. torch's own store
listens on every interface of the machine, and whoever reaches it can write into it. Ranks on one machine need no network:

- those that `finetune` starts meet over a file in a folder that only this user can enter (`private_folder`);
- those of srun, mpirun, deepspeed or a user's own loop meet at MASTER_PORT of the loopback interface;
- torchrun and accelerate open their store before they start the ranks, on every interface: fence the port (docs/security.md).

gloo and NCCL listen on the loopback interface, too, unless GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME name another one. Ranks
of several machines use the store at MASTER_ADDR, and those variables should name the interface of a network that is fenced.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.distributed.env import DistributedEnv
from finetune.distributed.held_folder import PREFIX, make_folder
from finetune.errors import UserError

if TYPE_CHECKING:
    import torch.distributed as dist

PRIVATE = "FINETUNE_PRIVATE"  # folder of one launch that only this user can enter; it changes nothing that is trained
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
ADDRESS = "127.0.0.1"
WAITING = 128  # connections that are not accepted yet


@contextmanager
def private_folder(otherwise: Path) -> Iterator[Path]:
    """A new folder that only this user can enter, under a name that nobody can guess; removed at the end, or by a later
    start if this process is killed. otherwise: where to make it if the system's temporary folder cannot be written.
    """
    try:
        folder, held = make_folder(PREFIX)
    except OSError:
        folder, held = make_folder(".launch-", otherwise)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def given_folder() -> Path | None:
    """The private folder of the process that started this rank; None if there is none, or if it is not this user's own."""
    name = os.environ.get(PRIVATE)
    if not name:
        return None
    with suppress(OSError):
        status = os.lstat(name)
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077:
            return Path(name)
    return None


def stay_inside(environment: MutableMapping[str, str]) -> None:
    """Have gloo and NCCL listen on the loopback interface alone, unless the variables name another one."""
    for name in INTERFACES:
        environment.setdefault(name, LOOPBACK)


def open_store(env: DistributedEnv, timeout: timedelta) -> dist.Store | None:
    """The store of this rank's process group; None for the one that MASTER_ADDR and MASTER_PORT name. All ranks call it."""
    import torch.distributed as dist

    if env.world_size > env.local_world_size:
        return None
    if env.world_size == 1:
        return dist.HashStore()
    folder = given_folder()
    if folder is not None:
        return dist.FileStore(str(folder / "store"), env.world_size)
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return None
    listening: dict[str, Any] = {}
    if env.rank == 0:
        listening["master_listen_fd"] = _listen(env.master_port)
    return dist.TCPStore(ADDRESS, env.master_port, env.world_size, env.rank == 0, timeout, **listening)


def _listen(port: int) -> int:
    """The descriptor of a socket that listens at a port of the loopback interface. Raises: UserError if it is taken."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((ADDRESS, port))
        listener.listen(WAITING)
    except OSError as error:
        listener.close()
        raise UserError(
            f"rank 0 cannot listen at port {port}: {error.strerror}",
            where="MASTER_PORT",
            remedy="An earlier launch that has not ended may have it: end that, or export another MASTER_PORT, the same for "
            "every rank. Ranks that wait for rank 0 end only if their launcher ends them (srun --kill-on-bad-exit).",
        ) from None
    return listener.detach()
