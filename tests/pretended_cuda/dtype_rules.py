"""Dtypes that CUDA's kernels refuse though the CPU's take them, and products that only CUDA has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
_PRODUCTS = {
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.baddbmm.default,
    aten.mv.default,
    aten.addmv.default,
}
_NORMS = {aten.native_layer_norm.default: 2, aten.native_group_norm.default: 1, aten._fused_rms_norm.default: 2}
_FUSED = {
    op
    for name in ("_fused_adamw_", "_fused_adam_", "_fused_sgd_", "_fused_adagrad_")
    for op in [getattr(getattr(aten, name), overload) for overload in getattr(aten, name).overloads()]
}


def check(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raises: RuntimeError as CUDA's kernel does."""
    if func in _PRODUCTS:
        dtype = args[0].dtype
        if not (dtype.is_floating_point or dtype.is_complex):
            raise RuntimeError(f'"addmm_cuda" not implemented for {dtype}')
    elif func in _NORMS:
        weight = args[_NORMS[func]]
        if isinstance(weight, Tensor) and weight.dtype != args[0].dtype:
            raise RuntimeError(
                f"expected scalar type {args[0].dtype} but found {weight.dtype} ({func}: input and weight)"
            )
    elif func in _FUSED:
        groups = [group for group in args[:4] if isinstance(group, (list, tuple)) and group]
        dtypes = {tensor.dtype for group in groups for tensor in group}
        if len(dtypes) > 1:
            raise RuntimeError(
                f"params, grads, exp_avgs, and exp_avg_sqs must have same dtype, device, and layout: {dtypes}"
            )


def _wide(left: Tensor, right: Tensor, out_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    if left.dtype != right.dtype:
        raise RuntimeError(f"expected m1 and m2 to have the same dtype, but got: {left.dtype} != {right.dtype}")
    if out_dtype not in (left.dtype, torch.float32) or (out_dtype != left.dtype and left.dtype not in _HALF):
        raise RuntimeError("out_dtype must be the same as input dtype or fp32 for fp16/bf16 inputs")
    return left.to(out_dtype), right.to(out_dtype)


_HALF = (torch.float16, torch.bfloat16)


def _product(left: Tensor, right: Tensor, out_dtype: torch.dtype, *, out: Tensor | None = None) -> Tensor:
    left, right = _wide(left, right, out_dtype)
    return _into(out, torch.matmul(left, right))


def _added(
    total: Tensor,
    left: Tensor,
    right: Tensor,
    out_dtype: torch.dtype,
    *,
    beta: Any = 1,
    alpha: Any = 1,
    out: Tensor | None = None,
) -> Tensor:
    if total.dtype not in (out_dtype, left.dtype):
        raise RuntimeError(f"self dtype must match either out_dtype or mat1 dtype: {total.dtype}")
    left, right = _wide(left, right, out_dtype)
    found = torch.matmul(left, right) * alpha
    return _into(out, found if beta == 0 else found + total.to(out_dtype) * beta)


def _into(out: Tensor | None, found: Tensor) -> Tensor:
    if out is None:
        return found
    if out.dtype != found.dtype:
        raise RuntimeError(f"Expected out tensor to have dtype {found.dtype}, but got {out.dtype} instead")
    return out.copy_(found)


INSTEAD: dict[Any, Callable[..., Any]] = {
    aten.mm.dtype: _product, aten.mm.dtype_out: _product, aten.bmm.dtype: _product, aten.bmm.dtype_out: _product,
    aten.addmm.dtype: _added, aten.addmm.dtype_out: _added, aten.baddbmm.dtype: _added, aten.baddbmm.dtype_out: _added,
}  # fmt: skip
