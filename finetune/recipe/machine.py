"""Facts about this machine that need no torch."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_GPU_SIGNS = ("/dev/nvidia0", "/dev/nvidiactl", "/proc/driver/nvidia/version", "/dev/kfd", "/dev/dxg")


def has_cuda() -> bool:
    """Is there a GPU that torch calls "cuda" (NVIDIA, ROCm, WSL)? False where the environment hides it."""
    if os.environ.get("DS_ACCELERATOR") == "cpu" or os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return False
    return any(Path(sign).exists() for sign in _GPU_SIGNS)


def count_gpus() -> int:
    """GPUs that a launcher may use: those that CUDA_VISIBLE_DEVICES names, else the device files; 0 without CUDA."""
    if not has_cuda():
        return 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip()])
    return max(1, len(list(Path("/dev").glob("nvidia[0-9]*"))))


def reach_own_programs() -> None:
    """Put the interpreter's folder on PATH: ninja is installed there, even if the environment is not activated."""
    folder = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", os.defpath)
    if folder not in path.split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([folder, path])
