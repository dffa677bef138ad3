"""Storages say where they lie; copies of a storage lie where it lies."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from tests.pretended_cuda.marks import CUDA, Mark
from tests.pretended_cuda.streams import QUEUE
from tests.pretended_cuda.waits import note_wait

_device = torch._C.StorageBase.device.__get__  # type: ignore[attr-defined]
_resize = torch.UntypedStorage.resize_
_new = torch.UntypedStorage.__new__


def _mark(storage: Any) -> Mark | None:
    return getattr(storage, "_pretended", None)


def _on_cuda(storage: Any) -> bool:
    mark = _mark(storage)
    return mark is not None and (mark.kind == "cuda" or (mark.kind == "open" and mark.guess == "cuda"))


def _device_of(storage: Any) -> torch.device:
    return CUDA if _on_cuda(storage) else _device(storage)


def _clone(storage: Any) -> Any:
    with _disable_current_modes():
        copied = _new(torch.UntypedStorage, storage.nbytes())
        torch._C.StorageBase.copy_(copied, storage, False)
    if _on_cuda(storage):
        copied._pretended = Mark("cuda", copied.nbytes())
    return copied


def _deep_copy(storage: Any, memo: dict[int, Any]) -> Any:
    memo = memo.setdefault("torch", {})  # type: ignore[call-overload]
    if storage._cdata not in memo:
        memo[storage._cdata] = _clone(storage)
    return memo[storage._cdata]


def _to_host(storage: Any) -> Any:
    if not _on_cuda(storage):
        return storage
    note_wait("storage.cpu")
    QUEUE.arrive()
    copied = _clone(storage)
    del copied._pretended
    return copied


def _to_cuda(storage: Any, device: Any = None, non_blocking: bool = False) -> Any:
    if _on_cuda(storage):
        return storage
    note_wait("storage.cuda")
    copied = _clone(storage)
    copied._pretended = Mark("cuda", copied.nbytes())
    return copied


def _to(storage: Any, *, device: Any, non_blocking: bool = False) -> Any:
    return _to_cuda(storage) if torch.device(device).type == "cuda" else _to_host(storage)


def _resize_counted(storage: Any, size: int) -> Any:
    mark = _mark(storage)
    if mark is not None and mark.kind == "cuda":
        mark.resize(size)
    return _resize(storage, size)


def install() -> None:
    storage: Any = torch.UntypedStorage
    storage.device = property(_device_of)
    storage.is_cuda = property(_on_cuda)
    storage.clone, storage.__deepcopy__ = _clone, _deep_copy
    storage.cpu, storage.cuda, storage.to, storage.resize_ = _to_host, _to_cuda, _to, _resize_counted
