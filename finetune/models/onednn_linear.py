"""Linear layers of a model that only answers, and products of the loss head, computed in float32 by oneDNN on processors
where torch's own way is slow.

On x86, torch multiplies float32 matrices with MKL, which takes its fast paths on Intel's processors alone: on an AMD EPYC of
the fifth generation, a core does 105 to 115 GFLOP/s, and 240 to 260 with oneDNN, which torch contains as well and uses for
half precision. The figures are in benchmarks/README.md. Weights stay where they are, as they are: no copy is kept.

A product has the same bytes on any number of threads. With the oneDNN of torch 2.13 (3.12), a row's result is also the same
in a product with any number of rows but one; with that of torch 2.11 (3.10) it is not, nor is MKL's.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

LEAST_ROWS, LEAST_PRODUCTS = 4, 2**20  # below, a call of oneDNN costs more than it saves
_CPU_INFO = Path("/proc/cpuinfo")


class OneDnnLinear(nn.Linear):
    """nn.Linear that calls oneDNN where it is faster, and is an nn.Linear in every other respect.

    The operator has no gradient, so under grad mode torch's own way is taken; also for other dtypes, devices and kinds of
    tensors, under autocast, and for small products. The choice depends on nothing but shapes and dtypes.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        weight, elements = self.weight, input.numel()
        if (
            elements < LEAST_ROWS * self.in_features
            or elements * self.out_features < LEAST_PRODUCTS
            or torch.is_grad_enabled()
            or not _is_plain(input, Tensor)
            or not _is_plain(weight, nn.Parameter)
            or torch.is_autocast_enabled("cpu")
        ):
            return super().forward(input)
        result: Tensor = _operator()(input, weight, self.bias, "none", [], "")
        return result


def multiply(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, [N, K] and [K, M], without gradients: by oneDNN under the conditions of `OneDnnLinear`."""
    rows, columns = len(left), right.shape[1]
    if (
        min(rows, columns) < LEAST_ROWS
        or rows * columns * right.shape[0] < LEAST_PRODUCTS
        or not (_is_plain(left, Tensor) and _is_plain(right, Tensor) and is_faster_here())
    ):
        return left @ right
    if rows > columns and not left.is_contiguous():  # oneDNN copies what it is given first, if that is transposed
        turned: Tensor = _operator()(right.t(), left, None, "none", [], "")
        return turned.t()
    result: Tensor = _operator()(left, right.t(), None, "none", [], "")
    return result


def use_onednn(module: nn.Module) -> int:
    """Let plain linear layers of `module` call oneDNN, where that is faster on this machine; returns how many.

    module: in evaluation mode. Layers whose class or forward pass is somebody else's stay as they are, and so does the whole
    module on a machine that is not known to gain. Hooks, adapters around a layer and tied weights stay in force.
    """
    return _replace(module) if is_faster_here() else 0


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a module computes x W^T + b and nothing else."""
    return type(module) in (nn.Linear, OneDnnLinear) and "forward" not in vars(module)


@lru_cache(maxsize=1)
def is_faster_here() -> bool:
    """Whether torch has both libraries, on a processor that is not Intel's."""
    if _operator() is None or not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    vendor = _processor_vendor()
    return bool(vendor) and vendor != "GenuineIntel"


def _replace(module: nn.Module) -> int:
    layers = [part for part in module.modules() if type(part) is nn.Linear and is_plain_linear(part)]
    for layer in layers:
        layer.__class__ = OneDnnLinear
    return len(layers)


def _is_plain(tensor: Tensor, kind: type) -> bool:
    """Not a subclass such as a shard, and float32 in the memory of the CPU."""
    return type(tensor) is kind and tensor.dtype is torch.float32 and tensor.device.type == "cpu"


@lru_cache(maxsize=1)
def _operator() -> Any:
    """What torch.compile calls for a linear layer; None in a build of torch without it."""
    packet = getattr(getattr(torch.ops, "mkldnn", None), "_linear_pointwise", None)
    return getattr(packet, "default", None)


def _processor_vendor() -> str:
    """As Linux names it; "" where that is not known."""
    try:
        lines = _CPU_INFO.read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")
