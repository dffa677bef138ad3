"""Facts about this machine that need no torch."""

from __future__ import annotations

import os
import resource
import signal
import sys
from pathlib import Path

from finetune.units import format_bytes

_ADDRESS_LIMIT = resource.getrlimit(resource.RLIMIT_AS)[0]  # as this process was started
_MEMORY_SIGNS = (
    "out of memory",
    "cannot allocate memory",
    "can't allocate memory",
    "failed to map segment",
    "bad_alloc",
    "can't start new thread",
    "os error 12",
)
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


def lacks_memory(error: BaseException) -> bool:
    """Whether an exception says that memory could not be had, in any of the ways in which libraries say so."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(sign in text for sign in _MEMORY_SIGNS)


def memory_limit() -> str:
    """A sentence on the limit that the shell sets to the address space of each process; "" if there is none."""
    if _ADDRESS_LIMIT == resource.RLIM_INFINITY:
        return ""
    return f"Each process may use {format_bytes(_ADDRESS_LIMIT)} of address space here: raise the limit (ulimit -v)."


def cause_of_signal(number: int) -> str:
    """What probably sent a signal that ended a process, as the rest of a sentence; "" if that is not known."""
    if number == signal.SIGBUS:
        return "; shared memory (/dev/shm) or the disk may be full: in Docker, --shm-size=8g gives more of the former"
    if number in (signal.SIGKILL, signal.SIGABRT):
        return "; the system may have run out of memory (see dmesg)"
    if number == signal.SIGVTALRM:
        return "; a chat template did not end in time: it is a program that came with the tokenizer"
    return ""


def reach_own_programs() -> None:
    """Put the interpreter's folder on PATH: ninja is installed there, even if the environment is not activated."""
    folder = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", os.defpath)
    if folder not in path.split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([folder, path])
