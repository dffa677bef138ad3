"""Replicas of one or several ranks: how their ranks follow their first one, and how transformers cuts a model over them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from finetune.distributed.engines.accelerator import GIVE_UP_AFTER
from finetune.distributed.session import Session
from finetune.errors import UserError

Item = TypeVar("Item")


class Replica:
    """The ranks that hold one copy of the model together, `session.split` in a row. All ranks of the group make one."""

    def __init__(self, session: Session) -> None:
        self.session = session
        ranks = [range(first, first + session.split) for first in range(0, session.world_size, session.split)]
        groups = (
            [dist.new_group(list(one), timeout=GIVE_UP_AFTER, backend="gloo") for one in ranks]
            if session.split > 1
            else []
        )
        self._group: Any = groups[session.replica] if groups else None
        self._lead = session.replica * session.split

    def follow(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items of the first rank, on every rank of the replica, each when it is asked for. All its ranks call it.

        The items of the other ranks are not touched. An error of the first rank ends the others too.
        """
        if self._group is None:
            yield from items
            return
        source = iter(items) if self.session.is_replica_lead else None
        while True:
            box: list[Any] = [None]
            if source is not None:
                box = [self._next(source)]
            dist.broadcast_object_list(box, src=self._lead, group=self._group)
            if box[0] is None:
                return
            yield box[0][0]

    @staticmethod
    def _next(source: Iterator[Any]) -> tuple[Any] | None:
        try:
            return (next(source),)
        except StopIteration:
            return None


@contextmanager
def replica_mesh(session: Session | None) -> Iterator[None]:
    """Models that transformers slices while they are loaded inside are cut over the ranks of each replica. By itself it
    takes all ranks of the process group for one.

    Raises: UserError if this version of transformers cannot be told so.
    """
    if session is None or session.split == 1 or session.replicas == 1:
        yield
        return
    from transformers.distributed import mixin

    whole = getattr(mixin, "initialize_distributed_mesh", None)
    if whole is None:
        raise UserError(
            "several replicas of a sliced model need a newer version of transformers",
            remedy=f"Start {session.split} processes, which are one replica.",
        )

    def own_mesh(config: Any) -> tuple[Any, Any]:
        """As transformers' own function, of the ranks of this replica."""
        from transformers.distributed.utils import TransformersDeviceMesh

        kind, names = session.device.type, ("pp", "dp_replicate", "fsdp", "tp")
        shape = (session.replicas, 1, 1, 1, session.split)
        mesh = dist.init_device_mesh(kind, shape, mesh_dim_names=("replica", *names))[names]
        device = torch.device(kind, int(os.environ.get("LOCAL_RANK", 0))) if kind == "cuda" else torch.device("cpu")
        return device, TransformersDeviceMesh(mesh, mesh)

    mixin.initialize_distributed_mesh = own_mesh  # type: ignore[attr-defined,assignment]
    try:
        yield
    finally:
        mixin.initialize_distributed_mesh = whole  # type: ignore[attr-defined]
