"""A model that two threads share: one computes at a time, each in the precision that the model is asked in."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch


class ModelGate:
    """Lets one thread into `model`'s forward pass at a time, under autocast where `autocast` is a dtype.

    Autocast belongs to a thread, and a generator computes in one of its own.
    """

    def __init__(self, model: Any, autocast: torch.dtype | None) -> None:
        self._device, self._autocast = next(model.parameters()).device.type, autocast
        self._lock = threading.RLock()
        self._entered = threading.local()
        self._hooks = [
            model.register_forward_pre_hook(self._enter),
            model.register_forward_hook(self._leave, always_call=True),
        ]

    @contextmanager
    def held(self) -> Iterator[None]:
        """No other thread is in the model meanwhile; autocast as in its forward pass."""
        with self._lock, self._precision():
            yield

    def remove(self) -> None:
        """Leave the model as it was."""
        for hook in self._hooks:
            hook.remove()

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device, self._autocast) if self._autocast is not None else nullcontext()

    def _enter(self, module: Any, arguments: Any) -> None:
        self._lock.acquire()
        context = self._precision()
        context.__enter__()
        self._entered.__dict__.setdefault("contexts", []).append(context)

    def _leave(self, module: Any, arguments: Any, outputs: Any) -> None:
        contexts = self._entered.__dict__.get("contexts", [])
        if contexts:
            contexts.pop().__exit__(None, None, None)
            self._lock.release()
