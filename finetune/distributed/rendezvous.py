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
import threading
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.distributed.env import DistributedEnv
from finetune.distributed.held_folder import PREFIX, make_folder
from finetune.errors import UserError

if TYPE_CHECKING:
    import torch.distributed as dist

PRIVATE = "FINETUNE_PRIVATE"  # folder of one launch that only this user can enter; it changes nothing that is trained
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
ADDRESS = "127.0.0.1"
ANOTHER = "end that, or export another MASTER_PORT, the same for every rank"
GREETING = timedelta(minutes=1)  # in which rank 0, whose port takes connections, greets
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
    if env.rank == 0:
        listening = _listen(env.master_port)
        store = dist.TCPStore(
            ADDRESS, env.master_port, env.world_size, True, timeout, wait_for_workers=False, master_listen_fd=listening
        )
        store.set(_greeting(env), "")
        return store
    _wait_for_listener(env.master_port, timeout)
    return _join(env, timeout)


def _greeting(env: DistributedEnv) -> str:
    return f"finetune, {env.world_size} ranks"


def _wait_for_listener(port: int, timeout: timedelta) -> None:
    """Until something listens at a port of the loopback interface; what that is, is asked by `_join`. Raises: TimeoutError."""
    ends = time.monotonic() + timeout.total_seconds()
    while True:
        with socket.socket() as probe:
            probe.settimeout(GREETING.total_seconds())
            if probe.connect_ex((ADDRESS, port)) == 0:
                return
        if time.monotonic() > ends:
            raise TimeoutError(f"rank 0 does not listen at port {port} after {timeout.total_seconds():.0f} s")
        time.sleep(0.1)


def _join(env: DistributedEnv, timeout: timedelta) -> dist.Store:
    """The store of rank 0, which greets at once. A launch that has the port does not, or has had this rank already.

    Raises: UserError if what listens there is not the store of this launch.
    """
    import torch.distributed as dist

    stores: list[dist.Store] = []

    def connect() -> None:
        with suppress(RuntimeError):  # torch's errors of a store
            stores.append(
                dist.TCPStore(ADDRESS, env.master_port, env.world_size, False, GREETING, wait_for_workers=False)
            )

    # In a thread, for torch waits without end for a listener that says nothing.
    connecting = threading.Thread(target=connect, daemon=True)
    connecting.start()
    connecting.join(GREETING.total_seconds())
    for store in stores:
        with suppress(RuntimeError):  # no greeting
            store.wait([_greeting(env)], GREETING)
            if store.add(f"rank {env.rank} came", 1) == 1:
                store.set_timeout(timeout)
                return store
    raise UserError(
        f"what listens at port {env.master_port} is not rank 0 of this launch",
        where="MASTER_PORT",
        remedy=f"An earlier launch that has not ended may have it: {ANOTHER}.",
    )


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
            remedy=f"An earlier launch that has not ended may have it: {ANOTHER}.",
        ) from None
    return listener.detach()
