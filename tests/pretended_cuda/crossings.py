"""What crosses between host and device: `to`, `cpu`, `cuda`, `copy_`, pinned memory, and constructors from Python's data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _disable_current_modes

from tests.pretended_cuda.marks import begin_use, device_of, is_cuda_device, is_on_cuda, mark_of, put
from tests.pretended_cuda.streams import QUEUE
from tests.pretended_cuda.waits import note_wait

_REAL: dict[str, Any] = {
    name: getattr(torch.Tensor, name)
    for name in ("to", "cpu", "cuda", "numpy", "tolist", "pin_memory", "is_pinned", "new_tensor", "__deepcopy__")
}
registered: list[tuple[int, int]] = []  # address and bytes of memory that cudaHostRegister pinned


def is_plain(tensor: Tensor) -> bool:
    """Not a subclass that wraps other tensors, such as DTensor: what is inside goes its own ways."""
    return type(tensor).__torch_dispatch__ is torch.Tensor.__torch_dispatch__


def cross(source: Tensor, *, to_cuda: bool, non_blocking: bool = False, **options: Any) -> Tensor:
    """A copy on the other side. options: of Tensor.to, beside the device."""
    if source.requires_grad and torch.is_grad_enabled():
        moved: Tensor = _Crossing.apply(source, to_cuda, non_blocking, options)
        return moved
    return _copy(source, to_cuda, non_blocking, options)


def _copy(source: Tensor, to_cuda: bool, non_blocking: bool, options: dict[str, Any]) -> Tensor:
    if device_of(source).type == "meta":
        raise NotImplementedError("Cannot copy out of meta tensor; no data!")
    with _disable_current_modes(), torch.no_grad():
        if not non_blocking:
            QUEUE.arrive()
        values = _REAL["to"](source.detach(), torch.device("cpu"), **{**options, "copy": True})
    if to_cuda:
        begin_use()
        if not non_blocking:
            note_wait("copy to the device")
        return put(values, "cuda")
    if non_blocking:
        return _send(values)
    note_wait("copy to the host")
    return values


def _send(values: Tensor) -> Tensor:
    with _disable_current_modes():
        arriving = _garbage(torch.empty_like(values))
    QUEUE.send(arriving, values)
    return put(arriving, "pinned")


def _garbage(tensor: Tensor) -> Tensor:
    return tensor.fill_(float("nan") if tensor.is_floating_point() else 113 if tensor.dtype != torch.bool else True)


class _Crossing(torch.autograd.Function):
    """The gradient goes back to where the tensor lay."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, to_cuda: bool, non_blocking: bool, options: dict[str, Any]) -> Tensor:  # type: ignore[override]
        ctx.to_cuda, ctx.dtype = to_cuda, source.dtype
        return _copy(source, to_cuda, non_blocking, options)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        if is_on_cuda(gradient) == ctx.to_cuda:
            gradient = cross(gradient, to_cuda=not ctx.to_cuda, dtype=ctx.dtype)
        return gradient, None, None, None


def copy_in_place(func: Callable[..., Any], destination: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """aten.copy_, whatever the devices."""
    there, here = is_on_cuda(destination), is_on_cuda(source)
    if there == here:
        func(destination, source, non_blocking)
    elif there:
        if not non_blocking:
            note_wait("copy to the device")
        func(destination, source)
    else:
        mark = mark_of(destination)
        pinned = (mark is not None and mark.kind == "pinned") or is_registered(destination)
        if non_blocking and pinned and destination.numel():
            QUEUE.send(destination, source.expand_as(destination).to(destination.dtype, copy=True))
            _garbage(destination)
        else:
            note_wait("copy to the host")
            QUEUE.arrive()
            func(destination, source)
    return destination


def is_registered(tensor: Tensor) -> bool:
    address = tensor.data_ptr()
    return any(begin <= address < begin + size for begin, size in registered)


def _target(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The device that the arguments of Tensor.to name, None where none, and the others by name."""
    kwargs = dict(kwargs)
    device, rest = kwargs.pop("device", None), list(args)
    other = kwargs.pop("other", None)
    if rest and isinstance(rest[0], Tensor):
        other = rest.pop(0)
    if other is not None:
        device, kwargs["dtype"] = other.device, other.dtype
        names = ["non_blocking", "copy"]
    elif rest and isinstance(rest[0], torch.dtype):
        names = ["dtype", "non_blocking", "copy"]
    else:
        if rest:
            device = rest.pop(0)
        names = ["dtype", "non_blocking", "copy"]
    kwargs |= dict(zip(names, rest, strict=False))
    if kwargs.get("dtype", 0) is None:
        del kwargs["dtype"]
    return device, kwargs


def to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    device, options = _target(args, kwargs)
    if not is_plain(self) or device is None:
        return _REAL["to"](self, *args, **kwargs)  # type: ignore[no-any-return]
    to_cuda = is_cuda_device(device)
    if not to_cuda and torch.device(device).type != "cpu":
        return _REAL["to"](self, *args, **kwargs)  # type: ignore[no-any-return]
    if to_cuda == is_on_cuda(self) and device_of(self).type != "meta":
        return _REAL["to"](self, **options) if options else self
    options.pop("copy", None)
    return cross(self, to_cuda=to_cuda, **options)


def cuda(self: Tensor, device: Any = None, non_blocking: bool = False, **options: Any) -> Tensor:
    return to(self, "cuda" if device is None else device, non_blocking=non_blocking, **options)


def cpu(self: Tensor, **options: Any) -> Tensor:
    return to(self, "cpu", **options)


def _refused_as_numpy(self: Tensor) -> None:
    if is_on_cuda(self):
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
        )


def numpy(self: Tensor, *args: Any, **kwargs: Any) -> Any:
    _refused_as_numpy(self)
    return _REAL["numpy"](self, *args, **kwargs)


def tolist(self: Tensor) -> Any:
    return _REAL["tolist"](cpu(self.detach()) if is_on_cuda(self) else self)


def read_unseen(tensor: Tensor) -> Any:
    """Its values, by the pretended device itself: no wait of the host."""
    with _disable_current_modes():
        return _REAL["tolist"](tensor)


def pin_memory(self: Tensor, device: Any = None) -> Tensor:
    begin_use()
    if is_on_cuda(self):
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
    if is_pinned(self):
        return self
    with _disable_current_modes():
        return put(self.detach().clone(), "pinned")  # type: ignore[no-any-return]


def is_pinned(self: Tensor, device: Any = None) -> bool:
    mark = mark_of(self)
    return (mark is not None and mark.kind == "pinned") or (mark is None and bool(registered) and is_registered(self))


def deep_copy(self: Tensor, memo: dict[int, Any]) -> Any:
    """On the device where the original lies, with its gradient."""
    if id(self) in memo or not is_plain(self) or not is_on_cuda(self):
        return _REAL["__deepcopy__"](self, memo)
    with _disable_current_modes():
        copied = _REAL["__deepcopy__"](self, memo)
    put(copied, "cuda")
    if copied.grad is not None:
        put(copied.grad, "cuda")
    return copied


def constructor(real: Callable[..., Any]) -> Callable[..., Any]:
    """Of torch.tensor, as_tensor and asarray: C++ would look for CUDA."""

    def construct(data: Any, *args: Any, **kwargs: Any) -> Any:
        device = kwargs.pop("device", None)
        if device is None and not isinstance(data, Tensor):
            device = _device_of_context()
        if not is_cuda_device(device):
            if device is None:
                return real(data, *args, **kwargs)
            if isinstance(data, Tensor) and is_on_cuda(data):
                data = data.cpu()
            return real(data, *args, device=device, **kwargs)
        if isinstance(data, Tensor) and is_on_cuda(data):
            return real(data, *args, **kwargs)
        wants_grad = kwargs.pop("requires_grad", False)
        found = cross(real(data, *args, device="cpu", **kwargs), to_cuda=True)
        return found.requires_grad_() if wants_grad else found

    return construct


def _device_of_context() -> Any:
    """That of `with torch.device(...)` or set_default_device; None without."""
    found = (mode.device for mode in reversed(_get_current_function_mode_stack()) if isinstance(mode, DeviceContext))
    return next(found, None)


def new_tensor(self: Tensor, data: Any, **kwargs: Any) -> Tensor:
    device = kwargs.pop("device", None) or self.device
    kwargs.setdefault("dtype", self.dtype)
    return torch.tensor(data, device=device, **kwargs)
