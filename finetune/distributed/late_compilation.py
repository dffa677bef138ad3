"""Imports without torch's compiler, which decorators in libraries would load at once: 1.4 seconds of a core, and more with
triton, for functions that most trainings never call (DeepSpeed's Muon, the CPU kernels of bitsandbytes, which peft imports).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch


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
