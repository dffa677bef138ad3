"""Imports without what makes them slow: collections of garbage, and libraries that few trainings call. No torch here.

Python walks all objects again and again while millions of them are made, and what modules make stays: of the 4.5 seconds of a
core that torch and transformers took, collections were 1.0 (benchmarks/README.md).
"""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

OPTIMIZE = "scipy.optimize"


@contextmanager
def quick_imports() -> Iterator[None]:
    """Around imports, before there is any data: what exists at the end is not looked at by any later collection, either."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        with _assignments_later():
            yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def _assignments_later() -> Iterator[None]:
    """transformers imports scipy's solver of assignments with every model, for the losses of detectors: it is imported when
    one of them first calls it.
    """
    if OPTIMIZE in sys.modules:
        yield
        return
    later = _Later(OPTIMIZE)
    sys.modules[OPTIMIZE] = later
    try:
        yield
    finally:
        if sys.modules.get(OPTIMIZE) is later:
            del sys.modules[OPTIMIZE]


class _Later(ModuleType):
    """Stands for scipy.optimize: one function that imports it when called; any other name imports it at once."""

    @staticmethod
    def linear_sum_assignment(*arguments: Any, **options: Any) -> Any:
        """As scipy's own."""
        return importlib.import_module(OPTIMIZE).linear_sum_assignment(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what the import system asks of every module
            raise AttributeError(name)
        if sys.modules.get(OPTIMIZE) is self:
            del sys.modules[OPTIMIZE]
        return getattr(importlib.import_module(OPTIMIZE), name)
