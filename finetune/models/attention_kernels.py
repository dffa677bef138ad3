"""Which of torch's kernels compute attention on a GPU.

torch 2.11 asks cuDNN first on Hopper and data-center Blackwell, from cuDNN 9.15.1 on, which its wheel for CUDA 13 brings. For
training on texts that is wrong in two ways. Its backward pass gives NaN behind a mask for some lengths
(github.com/pytorch/pytorch/issues/196678), and cuDNN makes a plan for each new shape, of which padded batches have
thousands, and generation one per token. So cuDNN is asked only where it pays: without a mask, for long segments of a round
length. There its kernels take about half the time of flash attention, on Hopper alone
(github.com/huggingface/transformers/pull/48163).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache

import torch
from torch import Tensor

CUDNN_LENGTH, CUDNN_MULTIPLE = 1024, 128  # tokens of a segment from which cuDNN pays, and of which they are a multiple
CUDNN_HEAD = 128  # the largest head that cuDNN's kernels have had for long
CUDNN_VERSION = 91501  # torch's own limit: before, lengths that are no multiple of 128 went wrong
FLASH_HEAD = 256  # the largest head of flash attention
HALF = (torch.float16, torch.bfloat16)


def leave_cudnn_out() -> None:
    """torch asks cuDNN for no attention in this process from here on, except inside `cudnn_first`."""
    torch.backends.cuda.enable_cudnn_sdp(False)


def cudnn_left_out() -> AbstractContextManager[None]:
    """Inside, the same; afterwards torch is as it was: for a process that is not ours alone (`finetune.load`)."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    context: AbstractContextManager[None] = sdpa_kernel(
        [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    )
    return context


def cudnn_first() -> AbstractContextManager[None]:
    """Inside, torch asks cuDNN's attention first, and the others in their usual order where it cannot."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    order = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
    context: AbstractContextManager[None] = sdpa_kernel(list(order), set_priority=True)
    return context


def prefers_cudnn(query: Tensor, length: int) -> bool:
    """Whether cuDNN is worth asking first for segments of `length` tokens, without a mask. query: [..., D]."""
    is_round = length >= CUDNN_LENGTH and length % CUDNN_MULTIPLE == 0
    return is_round and query.shape[-1] <= CUDNN_HEAD and is_hopper(query.device) and has_sound_cudnn()


def is_hopper(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


@cache
def has_sound_cudnn() -> bool:
    return (torch.backends.cudnn.version() or 0) >= CUDNN_VERSION


def spread_groups(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Keys and values with a head for each of the query's, where a GPU's kernels want that: what flash attention does not
    take (a mask, float32, large heads), kernels with fewer heads of keys compute through the scores of all pairs of tokens.
    [N, K, L, D] -> [N, H, L, D].
    """
    times = query.shape[1] // key.shape[1]
    by_flash = mask is None and query.dtype in HALF and query.shape[-1] <= FLASH_HEAD
    if times == 1 or by_flash or not is_on_gpu(query):
        return key, value
    return key.repeat_interleave(times, dim=1), value.repeat_interleave(times, dim=1)


def is_on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda
