"""Autocast as on CUDA: its lists of operators, on tensors of the pretended device, in place of the CPU's lists.

The lists are those of aten/src/ATen/autocast_mode.h (torch 2.13). Casts of weights are not kept between operators.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet

from tests.pretended_cuda.marks import is_on_cuda

LOWER = """_convolution conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d.input conv_transpose3d.input convolution
    prelu addmm addmv addr matmul einsum mm mv linalg_vecdot linear addbmm baddbmm bmm chain_matmul linalg_multi_dot
    lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell scaled_dot_product_attention"""
WIDE = """acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow.Tensor_Scalar pow.Tensor_Tensor
    pow.Scalar softplus layer_norm native_layer_norm group_norm frobenius_norm.dim nuclear_norm nuclear_norm.dim
    cosine_similarity poisson_nll_loss cosine_embedding_loss nll_loss nll_loss2d hinge_embedding_loss kl_div l1_loss
    smooth_l1_loss huber_loss mse_loss margin_ranking_loss multilabel_margin_loss soft_margin_loss triplet_margin_loss
    multi_margin_loss binary_cross_entropy_with_logits dist pdist cdist renorm logsumexp"""
WIDE_RESULT = """prod prod.dim_int softmax.int log_softmax.int cumprod cumsum linalg_vector_norm linalg_matrix_norm
    linalg_matrix_norm.str_ord sum sum.dim_IntList"""
WIDEST = """addcdiv addcmul atan2 bilinear cross dot vdot grid_sampler index_put tensordot scatter_add"""
REFUSED = "binary_cross_entropy"
_HALF = (torch.float16, torch.bfloat16)
_library: list[torch.library.Library] = []


def _operators(names: str) -> list[tuple[str, Any]]:
    found = []
    for name in names.split():
        packet, _, overload = name.partition(".")
        found.append((name, getattr(getattr(torch.ops.aten, packet), overload or "default")))
    return found


def _each(value: Any, cast: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return cast(value) if value.is_floating_point() and value.dtype != torch.float64 else value
    if isinstance(value, (list, tuple)):
        return type(value)(_each(item, cast) for item in value)
    return value


def _any_on_cuda(value: Any) -> bool:
    return (isinstance(value, Tensor) and is_on_cuda(value)) or (
        isinstance(value, (list, tuple)) and any(_any_on_cuda(item) for item in value)
    )


def _casting(op: Any, choose: Callable[[tuple[Any, ...]], torch.dtype | None], result: bool) -> Callable[..., Any]:
    """choose: the dtype of arguments, None: as they are. result: it is given as the operator's dtype instead."""
    guard = DispatchKeySet(DispatchKey.AutocastCPU)

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(guard):
            dtype = choose(args) if _any_on_cuda(args) or _any_on_cuda(tuple(kwargs.values())) else None
            if dtype is None:
                return op(*args, **kwargs)
            if result and kwargs.get("dtype") is None and isinstance(args[0], Tensor) and args[0].dtype in _HALF:
                return op(*args, **{**kwargs, "dtype": dtype})
            if result:
                return op(*args, **kwargs)
            args = _each(args, lambda tensor: tensor.to(dtype))
            return op(*args, **{key: _each(value, lambda one: one.to(dtype)) for key, value in kwargs.items()})

    return kernel


def _widest(args: tuple[Any, ...]) -> torch.dtype | None:
    found = {one.dtype for one in args if isinstance(one, Tensor) and one.is_floating_point()}
    return torch.float32 if torch.float32 in found and len(found) > 1 else None


def _refuse(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("torch.nn.functional.binary_cross_entropy and torch.nn.BCELoss are unsafe to autocast.")


def install() -> None:
    library = torch.library.Library("aten", "IMPL")
    _library.append(library)  # kernels end with it
    lists = [
        (LOWER, lambda args: torch.get_autocast_dtype("cuda"), False),
        (WIDE, lambda args: torch.float32, False),
        (WIDE_RESULT, lambda args: torch.float32, True),
        (WIDEST, _widest, False),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # overriding a previously registered kernel
        for names, choose, result in lists:
            for name, op in _operators(names):
                library.impl(name, _casting(op, choose, result), "AutocastCPU")
        library.impl(REFUSED, _refuse, "AutocastCPU")
    enabled, dtype = torch.set_autocast_enabled, torch.set_autocast_dtype

    def set_enabled(*args: Any) -> None:
        """Operators see the tensors of a CPU: its autocast is on where CUDA's is."""
        enabled(*args)
        if args[0] == "cuda":
            enabled("cpu", args[1])

    def set_dtype(device: str, wanted: torch.dtype) -> None:
        dtype(device, wanted)
        if device == "cuda" and wanted in _HALF:
            dtype("cpu", wanted)

    torch.set_autocast_enabled, torch.set_autocast_dtype = set_enabled, set_dtype  # type: ignore[assignment]
