"""The device has random numbers of its own: a generator beside that of the CPU, with a state of its own."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from tests.pretended_cuda.marks import CUDA, is_cuda_device

_RealGenerator = torch._C.Generator


_ON_CUDA: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


class _AnyGenerator(type(_RealGenerator)):  # type: ignore[misc]
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _RealGenerator)


class Generator(_RealGenerator, metaclass=_AnyGenerator):
    """torch.Generator, also of "cuda"."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        on_cuda = is_cuda_device(device)
        made = _RealGenerator.__new__(cls, torch.device("cpu") if on_cuda else device)
        if on_cuda:
            _ON_CUDA[made._cdata] = made
        return made  # type: ignore[no-any-return]

    def __init__(self, device: Any = "cpu") -> None: ...

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA if is_of_cuda(self) else torch.device("cpu")


def is_of_cuda(generator: Any) -> bool:
    """Operators are given it in a new Python object, on the same generator of C++."""
    return generator._cdata in _ON_CUDA


DEFAULT = Generator("cuda")
_lock = threading.Lock()


@contextmanager
def drawing() -> Iterator[None]:
    """Operators inside draw from the device's generator, whose state the CPU's has meanwhile."""
    host = torch.default_generator
    with _lock:
        with _disable_current_modes():
            before = host.get_state()
            host.set_state(DEFAULT.get_state())
        try:
            yield
        finally:
            with _disable_current_modes():
                DEFAULT.set_state(host.get_state())
                host.set_state(before)


def get_state(device: Any = "cuda") -> Tensor:
    with _disable_current_modes():
        return DEFAULT.get_state()


def set_state(state: Tensor, device: Any = "cuda") -> None:
    with _disable_current_modes():
        DEFAULT.set_state(state)


def seed(number: int) -> None:
    DEFAULT.manual_seed(int(number))
