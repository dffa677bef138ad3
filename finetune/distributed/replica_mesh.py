"""How transformers cuts a model over the ranks of each replica, where there are several of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from finetune.distributed.session import Session
from finetune.errors import UserError


@contextmanager
def replica_mesh(session: Session | None) -> Iterator[None]:
    """Models that transformers slices while they are loaded inside are cut over the ranks of each replica. By itself it
    takes all ranks of the process group for one.

    Raises: UserError if this version of transformers does not take a mesh.
    """
    if session is None or session.replica_size == 1 or session.replicas == 1:
        yield
        return
    from transformers.distributed import mixin

    whole = getattr(mixin, "initialize_distributed_mesh", None)
    if whole is None:
        raise UserError(
            "several replicas of a sliced model need a newer version of transformers",
            remedy=f"Start {session.replica_size} processes, which are one replica.",
        )

    def own_mesh(config: Any) -> tuple[Any, Any]:
        """As transformers' own function, of the ranks of this replica."""
        from transformers.distributed.utils import TransformersDeviceMesh

        kind, names = session.device.type, ("pp", "dp_replicate", "fsdp", "tp")
        shape = (session.replicas, 1, 1, 1, session.replica_size)
        mesh = dist.init_device_mesh(kind, shape, mesh_dim_names=("replica", *names))[names]
        device = torch.device(kind, int(os.environ.get("LOCAL_RANK", 0))) if kind == "cuda" else torch.device("cpu")
        return device, TransformersDeviceMesh(mesh, mesh)

    mixin.initialize_distributed_mesh = own_mesh  # type: ignore[attr-defined,assignment]
    try:
        yield
    finally:
        mixin.initialize_distributed_mesh = whole  # type: ignore[attr-defined]
