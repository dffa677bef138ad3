"""Where this process computes, and what its memory says."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from finetune.recipe.machine import has_cuda
from finetune.recipe.quotas import THREADS, threads_each

if TYPE_CHECKING:
    import torch

_NO_MEMORY = (  # RuntimeErrors of torch's allocator of the CPU; of CUDA, triton, cuBLAS and cuDNN, which have their own
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "_ALLOC_FAILED",
    "_ALLOCATION_FAILED",
)


def uses_cuda() -> bool:
    """Whether models run on a GPU that torch calls cuda; DS_ACCELERATOR=cpu keeps a process with GPUs on its CPU."""
    import torch

    return torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"


def share_cores(processes: int) -> None:
    """Compute with the share of one of so many processes in the cores, unless OMP_NUM_THREADS says with how many threads:
    torch knows the cores of the machine, but no quota of a container, and not what runs beside it.
    """
    import torch

    if THREADS not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), threads_each(processes)))


def describe_unused_gpu() -> str:
    """Why torch does not use the GPU that this machine has, and what to do; "" where it does, or where there is none."""
    import torch

    if not has_cuda() or torch.cuda.is_available():
        return ""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    shown = "" if named is None else f"; CUDA_VISIBLE_DEVICES is {named}"
    return (
        f"this machine has a GPU, but torch {torch.__version__} cannot use it ({why_no_gpu()}{shown}): "
        "the model is on the CPU. Install a build of torch that fits the driver, or set DS_ACCELERATOR=cpu where this is meant"
    )


def why_no_gpu() -> str:
    """Where torch sees none: what it gives as the reason."""
    import torch

    if not torch.backends.cuda.is_built():
        return "it was built without CUDA"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".")
    return "no reason is given"


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the memory of the CPU or of a GPU is too small."""
    import torch

    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(sign in str(error) for sign in _NO_MEMORY)


def free_memory(device: torch.device) -> None:
    """Give back what nobody holds any more, such as that of a batch that failed."""
    import gc

    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
