"""What torch's GPU kernels may do, chosen at one place for training, evaluation and every way of asking a model.

float32 is computed in TF32 only where the precision is `tf32`: products, and convolutions, which cuDNN by default computes so.
cuDNN's attention is not asked, except inside `cudnn_first` (attention_kernels.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from finetune.models.attention_kernels import cudnn_left_out, leave_cudnn_out


def choose_kernels(precision: str) -> None:
    """For this process from here on. precision: of the computation, such as fp32, tf32 or bf16."""
    leave_cudnn_out()
    _choose_float32(products=precision == "tf32", convolutions=precision == "tf32")


@contextmanager
def kernels_chosen(precision: str) -> Iterator[None]:
    """Inside, the same; afterwards torch is as it was: for a process that is not ours alone (`finetune.load`)."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with cudnn_left_out():
        try:
            _choose_float32(products=precision == "tf32", convolutions=precision == "tf32")
            yield
        finally:
            _choose_float32(products=before[0], convolutions=before[1])


def _choose_float32(*, products: bool, convolutions: bool) -> None:
    """Whether they are computed in TF32.

    These switches set torch's newer ones (`fp32_precision`) too. The newer alone would raise an error in whatever reads the
    older, such as torch.compile.
    """
    torch.backends.cuda.matmul.allow_tf32 = products
    torch.backends.cudnn.allow_tf32 = convolutions
