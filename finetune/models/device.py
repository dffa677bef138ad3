"""Where this process computes."""

from __future__ import annotations

import os


def uses_cuda() -> bool:
    """Whether models run on a GPU that torch calls cuda; DS_ACCELERATOR=cpu keeps a process with GPUs on its CPU."""
    import torch

    return torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
