"""What an exception of the model says of a row and of the device."""

from __future__ import annotations

import torch

from finetune.errors import FinetuneError, TrainingFailed
from finetune.inference.answering import RowError
from finetune.models.device import ran_out_of_memory


def judge(error: Exception, device: torch.device) -> RowError:
    """Whether memory or the rows are to blame. Raises: TrainingFailed for a device that no longer works."""
    message = (str(error).strip().splitlines() or [""])[0][:300]
    if ran_out_of_memory(error):
        return RowError("out_of_memory", f"the row does not fit into the memory of {device}")
    if device.type == "cuda":
        _check_device(device, error, message)
    if isinstance(error, FinetuneError):
        return RowError("failed", error.what)
    return RowError("failed", f"{type(error).__name__}: {message}")


def _check_device(device: torch.device, error: Exception, message: str) -> None:
    try:
        torch.zeros(1, device=device).add_(1).item()
    except Exception:
        raise TrainingFailed(
            f"the GPU no longer works in this process: {message}",
            where=str(device),
            remedy="Start the same command again: it goes on where it ended.",
        ) from error
