"""What triton's interpreter lacks to run liger-kernel's layers on a CPU: float32 scalars, two functions of CUDA's library."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import triton
import triton.language as tl
from triton.runtime import interpreter


@triton.jit
def rsqrt(x):
    return 1.0 / tl.sqrt(x)


@triton.jit
def tanh(x):
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


def complete_interpreter() -> None:
    """Before liger-kernel is imported, with TRITON_INTERPRET=1."""
    library = ModuleType("triton.language.extra.libdevice")
    library.rsqrt, library.tanh = rsqrt, tanh  # type: ignore[attr-defined]
    sys.modules[library.__name__] = library
    convert = interpreter._implicit_cvt

    def convert_scalars_too(argument: Any) -> Any:
        if not isinstance(argument, float):
            return convert(argument)
        return tl.tensor(interpreter.TensorHandle(np.array([argument], dtype=np.float32), tl.float32), tl.float32)

    interpreter._implicit_cvt = convert_scalars_too
