"""Segments of one row as a few padded blocks, for attention alone: one kernel call for each group of similar lengths.

A call per segment costs more than the attention of a short one, and slices of a row have gradients as large as the row.

Shapes: T tokens of S segments, H heads, K key-value heads, D head size; a block holds N segments of at most L tokens.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from finetune.models.attention_kernels import spread_groups
from finetune.models.shared_tokens import SharedTokens, compose

_FILLED = 0.75  # a segment joins a block if it fills this part of its rows,
_FREE = 16  # or leaves at most so many positions
_FREE_SCORES = 128**2  # on a CPU, where a call costs little, never more than so many pairs of positions
_BLOCKS = "_finetune_blocks"  # an attribute of the tensor of borders


@dataclass(frozen=True)
class _Block:
    """lengths: int64 [N], on the device; None where all segments have `width` tokens."""

    count: int
    width: int
    lengths: Tensor | None


@dataclass(frozen=True)
class _Blocks:
    """tokens: their places in the blocks; a place without one holds its segment's first."""

    blocks: tuple[_Block, ...]
    tokens: SharedTokens


def attend_in_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    borders: Tensor,
    *,
    causal: bool,
    window: int | None,
    dropout: float,
    scaling: float | None,
    shared: SharedTokens | None = None,
) -> Tensor:
    """query [1, H, T, D], key and value [1, K, T, D] -> [1, T, H, D]; each segment attends to itself alone.

    borders: int32 [S + 1], the first 0 and the last T. window: positions that a token sees on each side, itself included;
    those after it only where `causal` is false. shared: tokens of two segments; borders are then those of its places.
    """
    blocks = _blocks(borders, shared)
    parts = [_into_blocks(tensor, blocks) for tensor in (query, key, value)]
    outputs = []
    for block, q, k, v in zip(blocks.blocks, *parts, strict=True):
        mask = _mask(block, causal, window, query.device)
        k, v = spread_groups(q, k, v, mask)
        out = scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=causal and mask is None,
            scale=scaling,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    moved = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    return blocks.tokens.take(moved).unsqueeze(0)


def as_rows(tensor: Tensor) -> Tensor:
    """[1, H, T, D] -> [T, H, D], a view whose gradient is a view as well. `tensor[0]` has one that is filled with zeros, copied
    into, and then copied once more, because it lies in another order than the projections want it.
    """
    return tensor.transpose(1, 2).flatten(0, 1)


def _into_blocks(tensor: Tensor, blocks: _Blocks) -> list[Tensor]:
    """[1, H, T, D] -> [N, H, L, D] of each block."""
    spread = blocks.tokens.spread(as_rows(tensor))
    sizes = [block.count * block.width for block in blocks.blocks]
    parts = spread.split(sizes) if len(sizes) > 1 else (spread,)
    return [
        part.unflatten(0, (block.count, block.width)).transpose(1, 2)
        for part, block in zip(parts, blocks.blocks, strict=True)
    ]


def _mask(block: _Block, causal: bool, window: int | None, device: torch.device) -> Tensor | None:
    """Bool, broadcast to [N, H, L, L]; None where a causal mask, or none, is enough.

    With a causal mask, no token of a segment sees the places behind it.
    """
    mask = None
    if window is not None and window < block.width:
        mask = torch.ones(block.width, block.width, dtype=torch.bool, device=device).triu(1 - window)
        mask = mask.tril(0 if causal else window - 1)
    if not causal and block.lengths is not None:
        held = torch.arange(block.width, device=device) < block.lengths[:, None]
        held = held[:, None, None, :]
        # a place without a token may see its segment, so that no row of scores is empty
        mask = held if mask is None else (mask & held) | (~held.transpose(2, 3) & held)
    return mask


def _blocks(borders: Tensor, shared: SharedTokens | None) -> _Blocks:
    """Every layer asks with the same tensors; the device is asked for their values once."""
    blocks: _Blocks | None = getattr(borders, _BLOCKS, None)
    if blocks is None:
        blocks = _divide(borders.tolist(), borders.device)
        blocks = _Blocks(blocks.blocks, compose(blocks.tokens, shared))
        setattr(borders, _BLOCKS, blocks)
    return blocks


def _divide(borders: list[int], device: torch.device) -> _Blocks:
    segments = sorted(itertools.pairwise(borders), key=lambda span: span[0] - span[1])  # the longest first
    groups: list[list[tuple[int, int]]] = []
    for start, end in segments:
        if groups and _joins(end - start, groups[-1][0][1] - groups[-1][0][0], device):
            groups[-1].append((start, end))
        else:
            groups.append([(start, end)])
    blocks, source, place = [], [], np.empty(borders[-1], np.int64)
    filled = 0
    for group in groups:
        starts, ends = np.array(group).T
        lengths, width = ends - starts, int(ends[0] - starts[0])
        columns = np.arange(width)
        held = columns < lengths[:, None]
        tokens = np.where(held, starts[:, None] + columns, starts[:, None])
        places = filled + np.arange(tokens.size).reshape(tokens.shape)
        place[tokens[held]] = places[held]
        source.append(tokens.ravel())
        filled += tokens.size
        blocks.append(_Block(len(group), width, None if held.all() else torch.from_numpy(lengths).to(device)))
    tables = (torch.from_numpy(table).to(device) for table in (np.concatenate(source), place))
    return _Blocks(tuple(blocks), SharedTokens(*tables))


def _joins(length: int, width: int, device: torch.device) -> bool:
    few = length >= _FILLED * width or width - length <= _FREE
    return few and (device.type != "cpu" or width**2 - length**2 <= _FREE_SCORES)
