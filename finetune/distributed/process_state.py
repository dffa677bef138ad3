"""One session after another in the same processes: what Accelerate, DeepSpeed and transformers keep is reset in between.

`finetune verify` trains under many layouts; a launch for each would spend its time on imports.
"""

from __future__ import annotations

import gc
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from finetune.distributed.env import DistributedEnv, as_environ

WAIT = timedelta(minutes=30)


class ProcessState:
    """Make one before the first session, and call `reset` after each has been closed."""

    def __init__(self) -> None:
        from deepspeed.utils import groups

        self._groups = {name: value for name, value in vars(groups).items() if not callable(value)}
        self._copies = {name: value.copy() for name, value in self._groups.items() if type(value) in (dict, list)}

    def reset(self) -> None:
        """As if no session had been open. Nothing may refer to engines and sessions any more."""
        import deepspeed.comm.comm as deepspeed_comm
        from accelerate.state import AcceleratorState, GradientState
        from deepspeed.runtime.zero import partition_parameters
        from deepspeed.utils import groups
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        unset_hf_deepspeed_config()
        gc.collect()  # engines go before their groups
        if dist.is_initialized():
            dist.destroy_process_group()
        deepspeed_comm.cdb = None
        for name, value in self._groups.items():
            setattr(groups, name, self._copies[name].copy() if name in self._copies else value)
        zero: Any = partition_parameters
        if getattr(zero, "zero_init_context", 0):
            zero.shutdown_init_context()
            zero.zero_init_context = 0

    def wait(self) -> None:
        """Wait until every rank of the group calls it."""
        dist.barrier()


def meet(meeting: Path, rank: int, ranks: int) -> None:
    """Open a gloo group of `ranks` processes, which all call it, over a file that no other group has used.

    It returns when every process has all its connections. init_process_group returns when this one has; where it then leaves
    the group at once, as for a layout that is refused, a slower one ends with "Connection closed by peer".
    """
    os.environ.update(as_environ(DistributedEnv(rank, ranks, rank, ranks, "environment", "127.0.0.1", 1)))
    dist.init_process_group(
        "gloo", store=dist.FileStore(str(meeting), ranks), rank=rank, world_size=ranks, timeout=WAIT
    )
    dist.barrier()
