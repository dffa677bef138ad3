"""`import deepspeed` without torch's compiler, which a decorator in DeepSpeed's Muon optimizer would load at once.

That is 1.4 seconds of a core in each rank (torch._inductor and its kernels), for a function that most trainings never call.
"""

from __future__ import annotations

import importlib
from contextlib import suppress
from types import ModuleType

from finetune.distributed.late_compilation import compiling_later

DECORATED = ("deepspeed.runtime.zero.muon.original_muon",)  # modules that call torch.compile while they are imported


def import_deepspeed() -> ModuleType:
    """The package. What its modules compile when they are imported is compiled when it is first called instead."""
    with compiling_later():
        deepspeed = importlib.import_module("deepspeed")
        for name in DECORATED:
            with suppress(ImportError):  # older versions have no such module
                importlib.import_module(name)
    return deepspeed
