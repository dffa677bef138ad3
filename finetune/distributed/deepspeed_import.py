"""`import deepspeed` without torch's compiler, which a decorator in DeepSpeed's Muon optimizer would load at once.

That is 1.4 seconds of a core in each rank (torch._inductor and its kernels), for a function that most trainings never call.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FunctionType, ModuleType
from typing import Any

import torch

DECORATED = ("deepspeed.runtime.zero.muon.original_muon",)  # modules that call torch.compile while they are imported


def import_deepspeed() -> ModuleType:
    """The package. What its modules compile when they are imported is compiled when it is first called instead."""
    with compiling_later():
        deepspeed = importlib.import_module("deepspeed")
        for name in DECORATED:
            with suppress(ImportError):  # older versions have no such module
                importlib.import_module(name)
    return deepspeed


@contextmanager
def compiling_later() -> Iterator[None]:
    """Inside, torch.compile of a function returns one that is compiled at its first call, with the same result."""
    compile_now = torch.compile
    torch.compile = functools.partial(_compile_later, compile_now)  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compile_now  # type: ignore[assignment]


def _compile_later(compile_now: Callable[..., Any], model: Any = None, /, **options: Any) -> Any:
    model = options.pop("model", model)
    if model is None:
        return functools.partial(_compile_later, compile_now, **options)
    if not isinstance(model, FunctionType):
        return compile_now(model, **options)
    compiled: list[Callable[..., Any]] = []

    @functools.wraps(model)
    def first_compile(*args: Any, **kwargs: Any) -> Any:
        if not compiled:
            compiled.append(compile_now(model, **options))
        return compiled[0](*args, **kwargs)

    return first_compile
