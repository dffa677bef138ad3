"""`import deepspeed` without torch's compiler, which a decorator in DeepSpeed's Muon optimizer would load at once.

That is 1.4 seconds of a core in each rank (torch._inductor and its kernels), for a function that most trainings never call.
"""

from __future__ import annotations

import importlib
import logging
import os
from contextlib import suppress
from types import ModuleType

from finetune.distributed.late_compilation import compiling_later

DECORATED = ("deepspeed.runtime.zero.muon.original_muon",)  # modules that call torch.compile while they are imported

ON_CPU = "Setting accelerator to CPU"  # what each rank says while it imports DeepSpeed, where it finds no other


def import_deepspeed() -> ModuleType:
    """The package. What its modules compile when they are imported is compiled when it is first called instead. That there is
    no GPU is said by rank 0 alone.
    """
    if os.environ.get("RANK", "0") != "0":
        logging.getLogger("DeepSpeed").addFilter(_other_than_on_cpu)
    with compiling_later():
        deepspeed = importlib.import_module("deepspeed")
        for name in DECORATED:
            with suppress(ImportError):  # older versions have no such module
                importlib.import_module(name)
    return deepspeed


def _other_than_on_cpu(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(ON_CPU)
