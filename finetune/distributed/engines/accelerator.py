"""Accelerate opened for an engine: with DeepSpeed's plugin or without; and proof that it opened what was asked for."""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections.abc import MutableMapping
from contextlib import redirect_stdout
from datetime import timedelta
from types import ModuleType
from typing import Any

import torch.distributed as dist
from accelerate import Accelerator, DeepSpeedPlugin, PartialState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs
from torch.nn.parallel import DistributedDataParallel

from finetune.distributed.deepspeed_import import import_deepspeed
from finetune.distributed.prebuild import SHARED_MEMORY, Notify, announce_builds, choose_cache
from finetune.errors import FinetuneError

GIVE_UP_AFTER = timedelta(minutes=30)
_CHOICES = ("ACCELERATE_", "FSDP_", "MEGATRON_LM_", "PARALLELISM_CONFIG_")  # of `accelerate launch`, by prefix
_NO_CHOICES = ("ACCELERATE_TORCH_DEVICE", "ACCELERATE_DEBUG_MODE", "ACCELERATE_LOG_LEVEL")


def forget_choices(environment: MutableMapping[str, str]) -> None:
    """Take out what `accelerate launch` and its configuration file chose: Accelerate would open an engine that the recipe
    does not ask for, such as FSDP, or refuse a DeepSpeed configuration that differs. app/workers/launcher_config.py reports
    the differences before.
    """
    for name in [name for name in environment if name.startswith(_CHOICES) and name not in _NO_CHOICES]:
        del environment[name]


def open_accelerator(
    deepspeed_config: dict[str, Any] | None, *, precision: str, cpu: bool, notify: Notify
) -> Accelerator:
    """In a process group that is open. deepspeed_config: the resolved one, None for every other engine.

    notify: takes lines for the user, such as what DeepSpeed is going to compile.

    Raises: FinetuneError if what Accelerate opened is not what was asked for (it drops DeepSpeed silently when its
    environment says CPU).
    """
    with_deepspeed = deepspeed_config is not None
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true" if with_deepspeed else "false"
    choose_cache()  # optimizers of DeepSpeed's are compiled without its engine too
    mixed = precision if precision in ("bf16", "fp16") else "no"
    if deepspeed_config is None:
        accelerator = Accelerator(cpu=cpu, mixed_precision=mixed)
        accelerator.ddp_handler = _OwnBuffers()  # `kwargs_handlers` takes no subclass
    else:
        backend = dist.get_backend()
        announce_builds((SHARED_MEMORY,) if cpu else (), notify)
        _open_deepspeed(backend)
        # The state must know that it is a CPU one before the plugin makes it a DeepSpeed one.
        PartialState(cpu=cpu)
        accelerator = Accelerator(
            gradient_accumulation_steps=deepspeed_config["gradient_accumulation_steps"],
            mixed_precision=mixed,
            deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=deepspeed_config),
            kwargs_handlers=[InitProcessGroupKwargs(backend=backend, timeout=GIVE_UP_AFTER)],
        )
    _check_what_was_opened(accelerator, with_deepspeed)
    return accelerator


class _OwnBuffers(DistributedDataParallelKwargs):
    """How DistributedDataParallel is made: no forward pass copies the buffers of rank 0 to the others. torch from 2.13 on
    has another name for that, warns of the one that Accelerate knows, and copies them once, when it wraps the model.
    """

    def to_kwargs(self) -> dict[str, Any]:
        renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
        return {"forward_sync_buffers" if renamed else "broadcast_buffers": False, "gradient_as_bucket_view": True}


def load_deepspeed() -> ModuleType:
    """The package. What it prints while it is imported goes to stderr, which is the rank's log; its warnings stay."""
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    with redirect_stdout(sys.stderr):
        return import_deepspeed()


def _open_deepspeed(backend: str) -> None:
    """DeepSpeed's own view of the group that is open: ZeRO-3 shards at load by it, before any engine exists."""
    deepspeed = load_deepspeed()
    with redirect_stdout(sys.stderr):
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


def _check_what_was_opened(accelerator: Accelerator, with_deepspeed: bool) -> None:
    asked = int(os.environ["WORLD_SIZE"])
    got_deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    if accelerator.num_processes != asked or got_deepspeed != with_deepspeed:
        raise FinetuneError(
            f"Accelerate opened {accelerator.num_processes} processes as {accelerator.distributed_type.value}; "
            f"asked for were {asked}, with DeepSpeed {'on' if with_deepspeed else 'off'}",
            remedy="Unset ACCELERATE_* variables left over in the environment, or start with `finetune train`.",
        )
