"""The engines there are: what trains a model on the ranks. One entry each; nothing here imports torch.

To add one: a file in `distributed/engines/` with a class that follows the protocol `Engine` and a function that opens it,
and an entry here. `parallel.engine` chooses by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

AUTO = "auto"


@dataclass(frozen=True)
class EngineSpec:
    """opener: "module:attribute" or a callable; called with (session, module, make_optimizer, options)."""

    name: str
    opener: str | Callable[..., Any]
    description: str


_FOLDER = "finetune.distributed.engines"
ENGINES: dict[str, EngineSpec] = {
    "ddp": EngineSpec("ddp", f"{_FOLDER}.ddp:open_ddp", "PyTorch's DistributedDataParallel"),
    "deepspeed": EngineSpec("deepspeed", f"{_FOLDER}.deepspeed:open_deepspeed", "DeepSpeed ZeRO, as deepspeed says"),
    "pipeline": EngineSpec(
        "pipeline", f"{_FOLDER}.pipeline:open_pipeline", "a pipeline of as many ranks as pipeline says"
    ),
}


def describe_engines() -> str:
    """The sentence under `parallel.engine`."""
    entries = "; ".join(f"{spec.name}: {spec.description}" for spec in ENGINES.values())
    return f"What trains on the ranks. auto: as deepspeed and pipeline say. {entries}."
