"""Which errors say that memory is short: whoever asks for it says so in words of its own."""

from __future__ import annotations

import pytest
import torch

from finetune.models.device import ran_out_of_memory

SHORT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    ),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
]
OTHERS = [
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    ValueError("shapes differ"),
]


@pytest.mark.parametrize("error", SHORT, ids=lambda error: f"{type(error).__name__} {str(error)[:40]}")
def test_memory_is_short(error: Exception) -> None:
    assert ran_out_of_memory(error)


@pytest.mark.parametrize("error", OTHERS, ids=lambda error: str(error)[:40])
def test_something_else_is_wrong(error: Exception) -> None:
    assert not ran_out_of_memory(error)
