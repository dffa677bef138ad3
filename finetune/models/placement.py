"""Where the weights of a model go that one device cannot hold: layers over devices, slices or stages over ranks.

Layers: each layer whole on one device, one after the other; what no GPU holds waits in main memory, and what that does not
hold, on the disk (accelerate's device_map). One process; only one of its GPUs works at a time.
Slices: the matrices of each layer are cut over the ranks of a replica by the model's own plan (transformers' tp_plan), and a
rank reads no more than its slices of the files. All ranks of the replica compute every batch together.
Stages: a model is loaded whole by each rank of a replica, which then keeps its own blocks (see models/stages.py).

The placement is set around `Task.build`, which does not know of it: with placed(Placement(...)): task.build(...).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from finetune.errors import UserError
from finetune.models.device import uses_cuda

if TYPE_CHECKING:
    import torch

SHARE = 0.9  # of the free memory of a device that weights may take; the rest is for what is computed
MEMORY_SHARE = 0.8  # of main memory

_current: ContextVar[Placement | None] = ContextVar("placement", default=None)


@dataclass(frozen=True)
class Placement:
    """layers: numbers of the GPUs that share the layers. memory: bytes that weights may take, by number of a GPU or "cpu";
    those that are not named: by what is free. offload: folder for weights that no memory holds.

    slices: ranks that share each layer (see distributed/replica_mesh.py for several such groups of ranks). stages: ranks
    that hold some blocks each.
    """

    layers: tuple[int, ...] = ()
    memory: Mapping[int | str, int] = field(default_factory=dict)
    offload: Path | None = None
    slices: int = 1
    stages: int = 1

    @property
    def ranks(self) -> int:
        """That hold the model together."""
        return self.slices * self.stages

    @property
    def spreads_layers(self) -> bool:
        return bool(self.layers or self.memory)

    def options(self, kind: Any) -> dict[str, Any]:
        """Arguments of from_pretrained. kind: class of the model. Raises: UserError if it cannot be placed so."""
        if self.slices > 1:
            from transformers.distributed import DistributedConfig

            return {"distributed_config": DistributedConfig(tp_size=self.slices)}
        if not self.spreads_layers:
            return {}
        if not getattr(kind, "_no_split_modules", None):
            raise UserError(
                f"the layers of {kind.__name__} cannot be put on several devices: it does not say what must stay together",
                remedy="Use one device, or a quantized base (--quantization 4bit) if memory is short.",
            )
        if self.offload is not None:
            self.offload.mkdir(parents=True, exist_ok=True)
        folder = {"offload_folder": str(self.offload)} if self.offload is not None else {}
        return {"device_map": "balanced", "max_memory": self._memory(), **folder}

    def _memory(self) -> dict[int | str, int]:
        import torch

        free: dict[int | str, int] = {"cpu": int(psutil.virtual_memory().available * MEMORY_SHARE)}
        if uses_cuda():
            free |= {number: int(torch.cuda.mem_get_info(number)[0] * SHARE) for number in self.layers}
        return {**free, **self.memory}


@contextmanager
def placed(placement: Placement | None) -> Iterator[None]:
    """Models that are loaded inside are placed so."""
    token = _current.set(placement)
    try:
        yield
    finally:
        _current.reset(token)


def placement_options(kind: Any) -> dict[str, Any]:
    """Additional arguments of from_pretrained; empty where weights are loaded whole."""
    placement = _current.get()
    return placement.options(kind) if placement is not None else {}


def layer_devices(module: Any) -> list[torch.device] | None:
    """The devices that compute a model's layers, in order; None for a model that is whole on one."""
    import torch

    places = getattr(_base(module), "hf_device_map", None)
    if places is None:
        return None
    named = [place for place in dict.fromkeys(places.values()) if place != "disk"]
    devices = [torch.device("cuda", place) if isinstance(place, int) else torch.device(place) for place in named]
    return [device for device in devices if device.type != "cpu"] or devices or [torch.device("cpu")]


def describe_layers(module: Any) -> list[str]:
    """Where layers are, if not on one device, and how many of them wait elsewhere until they are computed."""
    import torch

    devices, places = layer_devices(module), list((getattr(_base(module), "hf_device_map", None) or {}).values())
    if devices is None or len(set(places)) < 2:
        return []
    notes = [f"layers are on {', '.join(map(str, devices))}"]
    waits = (
        {"disk": "on the disk"} if torch.device("cpu") in devices else {"cpu": "in main memory", "disk": "on the disk"}
    )
    for place, where in waits.items():
        if count := places.count(place):
            notes.append(
                f"{count} of {len(places)} parts of the model wait {where} until they are computed, which is slow"
            )
    return notes


def _base(module: Any) -> Any:
    return module.get_base_model() if hasattr(module, "get_base_model") else module
