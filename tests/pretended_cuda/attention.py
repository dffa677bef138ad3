"""torch's variable-length flash attention, segment by segment, with what its kernels on an H100 ask for."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tests.pretended_cuda.crossings import read_unseen
from tests.pretended_cuda.marks import is_on_cuda

HALF = (torch.float16, torch.bfloat16)


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> Tensor:
    """query: [tokens, H, D]; key, value: [tokens, K, D]. Raises: RuntimeError, ValueError as torch does."""
    if return_aux is not None or seqused_k is not None or block_table is not None:
        raise NotImplementedError("the pretended device has no paged keys and no log-sum-exp")
    assert cu_seq_k is not None
    _refuse(query, key, value, cu_seq_q, cu_seq_k, enable_gqa)
    starts, key_starts = map(read_unseen, (cu_seq_q, cu_seq_k))
    lengths = [end - start for start, end in pairwise(starts)]
    if max(lengths) > max_q or starts[-1] > len(query):
        raise RuntimeError(f"a segment of {max(lengths)} tokens is longer than max_q, {max_q}, or lies outside")
    rows = []
    for place, length in enumerate(lengths):
        mine, theirs = slice(starts[place], starts[place + 1]), slice(key_starts[place], key_starts[place + 1])
        q, k, v = (x.transpose(0, 1) for x in (query[mine], key[theirs], value[theirs]))
        mask = _window(length, k.shape[1], window_size, query.device)
        out = scaled_dot_product_attention(
            q[None], k[None], v[None], attn_mask=mask, scale=scale, enable_gqa=enable_gqa
        )
        rows.append(out[0].transpose(0, 1))
    if starts[-1] < len(query):
        rows.append(torch.zeros_like(query[starts[-1] :]))
    return torch.cat(rows)


def _refuse(query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, enable_gqa: bool) -> None:
    every = (query, key, value, cu_seq_q, cu_seq_k)
    if not all(map(is_on_cuda, every)):
        raise RuntimeError("Expected all tensors to be on the same device: _flash_attention_forward runs on CUDA alone")
    if query.dtype not in HALF or {key.dtype, value.dtype} != {query.dtype}:
        raise RuntimeError(
            f"FlashAttention only support fp16 and bf16 data type, of one kind: {[x.dtype for x in every[:3]]}"
        )
    if cu_seq_q.dtype != torch.int32 or cu_seq_k.dtype != torch.int32:
        raise RuntimeError("cu_seqlens_q must have dtype int32")
    if query.shape[-1] % 8 or query.shape[-1] > 256:
        raise RuntimeError(
            f"FlashAttention forward only supports head dimension at most 256, a multiple of 8: {query.shape}"
        )
    if any(x.stride(-1) != 1 for x in every[:3]):
        raise RuntimeError("Input tensor must have contiguous last dimension")
    if not enable_gqa and query.shape[1] != key.shape[1]:
        raise ValueError("Expect query and key/value to have the same number of heads: set enable_gqa=True for GQA.")


def _window(queries: int, keys: int, size: tuple[int, int], device: torch.device) -> Tensor | None:
    """[queries, keys], true where a query sees a key; the last query is beside the last key."""
    left, right = size
    if left < 0 and right < 0:
        return None
    apart = torch.arange(keys, device=device) - torch.arange(queries, device=device)[:, None] - (keys - queries)
    seen = torch.ones(queries, keys, dtype=torch.bool, device=device)
    if left >= 0:
        seen &= apart >= -left
    if right >= 0:
        seen &= apart <= right
    return seen
