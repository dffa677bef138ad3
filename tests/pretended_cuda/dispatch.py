"""Every operator of torch, below autograd: its results lie where its inputs lie, and what CUDA refuses is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.pretended_cuda import crossings, dtype_rules
from tests.pretended_cuda.marks import CPU, is_cuda_device, is_on_cuda, mark_of, put, settle
from tests.pretended_cuda.randomness import drawing, is_of_cuda
from tests.pretended_cuda.streams import QUEUE
from tests.pretended_cuda.waits import note_wait

aten = torch.ops.aten
WAITING = {  # operators whose result has a size, or a value, that the host must know
    aten.nonzero.default, aten.masked_select.default, aten._unique2.default, aten.unique_dim.default, aten.equal.default,
    aten.unique_consecutive.default, aten.bincount.default, aten.repeat_interleave.Tensor,
}  # fmt: skip
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
TAKES_SCALARS = {  # beside pointwise operators: a number in a tensor of the CPU
    aten.fill_.Tensor, aten.masked_fill.Tensor, aten.masked_fill_.Tensor, aten.where.self, aten.clamp.Tensor,
    aten.copy.default, aten.index_fill.int_Tensor, aten.index_fill_.int_Tensor, aten._fused_adamw_.tensor_lr,
    aten._fused_adam_.tensor_lr, aten._fused_sgd_.tensor_lr,
}  # fmt: skip
GIVEN_STORAGE = {
    aten.set_.source_Storage, aten.set_.source_Storage_storage_offset, aten.set_.source_Tensor,
    aten.set_.source_Tensor_storage_offset, aten._has_compatible_shallow_copy_type.default,
}  # fmt: skip
_PLAIN = Tensor.__torch_dispatch__
_lately = threading.local()  # .kind: where the last operator of this thread ran, for what C++ makes inside operators


class PretendedCuda(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if FakeTensor in types:  # shapes without values
            return func(*args, **(kwargs or {}))
        if any(
            kind.__torch_dispatch__ is not _PLAIN for kind in types
        ):  # a tensor that wraps others: they come here by themselves
            return NotImplemented
        return run(func, args, kwargs or {})


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if func is aten.copy_.default:
        return crossings.copy_in_place(func, *args, **kwargs)
    if func in GIVEN_STORAGE:  # which lies where it lies
        return func(*args, **kwargs)
    inputs = list(_tensors(args, kwargs))
    if func is aten._local_scalar_dense.default:
        if is_on_cuda(inputs[0]):
            note_wait("a value for the host")
            QUEUE.arrive()
        return func(*args)
    kind, pinned = _place(func, inputs, kwargs), bool(kwargs.get("pin_memory"))
    if "device" in kwargs and is_cuda_device(kwargs["device"]):
        kwargs = {**kwargs, "device": CPU}
    if pinned:
        kwargs = {**kwargs, "pin_memory": False}
    if kind == "cuda":
        for tensor in inputs:
            settle(tensor)
        _refuse_generator(func, kwargs)
        _note_waits(func, args, kwargs)
        found = _compute(func, args, kwargs)
    else:
        _refuse_generator(func, kwargs, wanted="cpu")
        found = func(*args, **kwargs)
    if inputs or "device" in kwargs:
        _lately.kind = "cuda" if kind == "cuda" or (kind == "open" and _guess() == "cuda") else "cpu"
    if kind != "cpu" or pinned:
        for tensor in _tensors((found,), {}):
            put(tensor, "pinned" if pinned and kind != "cuda" else kind, _guess())
    return found


def _compute(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    dtype_rules.check(func, args, kwargs)
    instead = dtype_rules.INSTEAD.get(func)
    if instead is not None:
        return instead(*args, **kwargs)
    if torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("generator") is None:
        with drawing():
            return func(*args, **kwargs)
    return func(*args, **kwargs)


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (item for item in value if isinstance(item, Tensor))


def _guess() -> str:
    return getattr(_lately, "kind", "cpu")


def _place(func: Any, inputs: list[Tensor], kwargs: dict[str, Any]) -> str:
    """Where the results lie: "cuda", "cpu" or "open". Python's bindings always say whether memory is pinned: a device without
    it comes from C++, which knows the CPU alone, and means that of its inputs.
    """
    device, from_python = kwargs.get("device"), kwargs.get("pin_memory") is not None
    if device is not None and is_cuda_device(device):
        return "cuda"
    if not inputs:
        return "cpu" if from_python or "device" not in kwargs else "open"
    kinds = [_kind(tensor) for tensor in inputs]
    if device is not None and device.type != "cpu":
        return "cpu"  # meta
    if "cuda" in kinds:
        if from_python and device is not None:
            return "cpu"
        strangers = [tensor for tensor, kind in zip(inputs, kinds, strict=True) if kind == "cpu" and not tensor.is_meta]
        if strangers and func.namespace != "c10d":
            _refuse_mixture(func, inputs, strangers)
        return "cuda"
    return "open" if "open" in kinds and "cpu" not in kinds else "cpu"


def _kind(tensor: Tensor) -> str:
    mark = mark_of(tensor)
    return "cpu" if mark is None or mark.kind == "pinned" else mark.kind


def _refuse_mixture(func: Any, inputs: list[Tensor], strangers: list[Tensor]) -> None:
    whole = [tensor for tensor in inputs if is_on_cuda(tensor) and tensor.dim()]
    scalars = torch.Tag.pointwise in func.tags or func in TAKES_SCALARS or "_foreach_" in str(func)
    if func in INDEXING and is_on_cuda(inputs[0]):  # indices, and a number that is put there
        strangers = [one for one in strangers if one.dtype.is_floating_point and one.dim()]
        scalars = True
    if scalars:
        strangers = [
            tensor for tensor in strangers if tensor.dim() or (tensor is inputs[0] and _writes(func) and whole)
        ]
    if strangers:
        shapes = ", ".join(f"{list(one.shape)} on {'cuda:0' if is_on_cuda(one) else 'cpu'}" for one in inputs[:6])
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({func}: {shapes})"
        )


def _writes(func: Any) -> bool:
    return bool(func._schema.is_mutable)


def _refuse_generator(func: Any, kwargs: dict[str, Any], wanted: str = "cuda") -> None:
    generator = kwargs.get("generator")
    if generator is not None and is_of_cuda(generator) != (wanted == "cuda"):
        found = "cuda" if wanted == "cpu" else "cpu"
        raise RuntimeError(f"Expected a '{wanted}' device type for generator but found '{found}' ({func})")


def _note_waits(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    masks = func in INDEXING and any(one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1])
    if masks or (func in WAITING and kwargs.get("output_size") is None):
        note_wait(str(func))
        QUEUE.arrive()
