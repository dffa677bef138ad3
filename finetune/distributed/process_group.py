"""Opening the process group of a launch: its store, its backend, and the GPU of each rank."""

from __future__ import annotations

import os
import socket
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import check_cuda_p2p_ib_support

from finetune.distributed.engines.accelerator import GIVE_UP_AFTER
from finetune.distributed.env import DistributedEnv
from finetune.distributed.rendezvous import ADDRESS, open_store


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


def choose_gpu(env: DistributedEnv) -> None:
    """Libraries take the GPU of the number LOCAL_RANK; where ranks share GPUs, it is no rank any more."""
    if shares_gpu():
        os.environ["LOCAL_RANK"] = str(env.local_rank % max(1, torch.cuda.device_count()))


def lone_environment() -> DistributedEnv:
    """Of a process that no launcher started: one rank, with a port that is free."""
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return DistributedEnv(0, 1, 0, 1, "none", ADDRESS, probe.getsockname()[1])


def open_process_group(cpu: bool, env: DistributedEnv) -> None:
    """All ranks call it. gloo on CPUs and where ranks share a GPU, else NCCL, after `choose_gpu`."""
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
