"""Imports without what makes them slow: collections of garbage, and libraries that few trainings call. No torch here.

Python walks all objects again and again while millions of them are made, and what modules make stays: of the 4.5 seconds of a
core that torch and transformers took, collections were 1.0 (benchmarks/README.md).
"""

from __future__ import annotations

import atexit
import gc
import importlib
import inspect
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from finetune.distributed.quick_listing import quick_listing
from finetune.ending import ended_by

# Module -> functions of it that transformers imports with every model (in some versions), and few trainings call: the
# solver of assignments is for the losses of detectors, the curve for one way to generate, the last for quantized checkpoints.
# Of a core's seconds: scipy.optimize 0.3, sklearn.metrics 1.3 (with scipy.stats, pandas and pyarrow), torchao 0.8.
LATER = {
    "scipy.optimize": ("linear_sum_assignment",),
    "sklearn.metrics": ("roc_curve",),
    "torchao.prototype.safetensors.safetensors_support": ("flatten_tensor_state_dict",),
}


@contextmanager
def quick_imports() -> Iterator[None]:
    """Around imports, before there is any data: what exists at the end is not looked at by any later collection, either.
    Ctrl-C ends the process at once.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        with ended_by(signal.SIGINT), _functions_later(), _frames_without_source(), quick_listing():
            yield
    finally:
        gc.freeze()
        gc.enable()


@atexit.register
def _thaw() -> None:
    """What is frozen is never collected, and libraries bound with nanobind print 27 lines about leaks where their types are
    still there when Python ends: triton from 3.9 on. Only then, for the last collections take a second of a core.
    """
    builder = getattr(getattr(sys.modules.get("triton._C.libtriton"), "ir", None), "builder", None)
    if type(builder).__module__.startswith("nanobind"):
        gc.unfreeze()
        gc.disable()  # one of three collections less


@contextmanager
def _functions_later() -> Iterator[None]:
    """Inside, each module of LATER that is not imported yet is a stand-in for what is imported from it by name: its functions
    import the module when they are first called, and any other name imports it at once.
    """
    placed = {name: _Later(name) for name in LATER if name not in sys.modules}
    sys.modules.update(placed)
    try:
        yield
    finally:
        for name, later in placed.items():
            if sys.modules.get(name) is later:
                del sys.modules[name]


@contextmanager
def _frames_without_source() -> Iterator[None]:
    """Inside, `inspect.getframeinfo` reads source code only for those that ask for lines of it. torch asks at each of 135
    operators for the file and the number of the line that defines it, and Python looks through all modules for the source.
    """
    ask = inspect.getframeinfo

    def ask_without_source(frame: Any, context: int = 0) -> inspect.Traceback:
        return ask(frame, context)

    setattr(inspect, "getframeinfo", ask_without_source)  # noqa: B010 (an assignment that a type checker refuses)
    try:
        yield
    finally:
        setattr(inspect, "getframeinfo", ask)  # noqa: B010


class _Later(ModuleType):
    """Stands for a module of LATER."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        for function in LATER[name]:
            setattr(self, function, _call_later(name, function))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what the import system asks of every module
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def _call_later(module: str, function: str) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        return getattr(importlib.import_module(module), function)(*arguments, **options)

    call.__name__ = function
    return call
