"""Segments of one row as a few padded blocks, for attention alone: one kernel call for each group of similar lengths.

A call per segment costs more than the attention of a short one, and slices of a row have gradients as large as the row.

Shapes: T tokens of S segments, H heads, K key-value heads, D head size; a block holds N segments of at most L tokens.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

_FILLED = 0.75  # a segment joins a block if it fills this part of its rows,
_FREE = 16  # or leaves at most so many positions
_BLOCKS = "_finetune_blocks"  # an attribute of the tensor of borders


@dataclass(frozen=True)
class _Block:
    """lengths: int64 [N], on the device; None where all segments have `width` tokens."""

    count: int
    width: int
    lengths: Tensor | None


@dataclass(frozen=True)
class _Blocks:
    """source: the token at each place of the blocks, [P]; a place without one holds its segment's first. place: that of each
    token, [T].
    """

    blocks: tuple[_Block, ...]
    source: Tensor
    place: Tensor


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
) -> Tensor:
    """query [1, H, T, D], key and value [1, K, T, D] -> [1, T, H, D]; each segment attends to itself alone.

    borders: int32 [S + 1], the first 0 and the last T. window: positions that a token sees on each side, itself included;
    those after it only where `causal` is false.
    """
    blocks = _blocks(borders)
    parts = [_into_blocks(tensor, blocks) for tensor in (query, key, value)]
    outputs = []
    for block, q, k, v in zip(blocks.blocks, *parts, strict=True):
        mask = _mask(block, causal, window, query.device)
        out = scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=causal and mask is None,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    moved = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    result: Tensor = _Take.apply(moved, blocks.place, len(blocks.source))
    return result.unsqueeze(0)


def _into_blocks(tensor: Tensor, blocks: _Blocks) -> list[Tensor]:
    """[1, H, T, D] -> [N, H, L, D] of each block."""
    spread: Tensor = _Spread.apply(tensor[0].transpose(0, 1), blocks.source, blocks.place)
    sizes = [block.count * block.width for block in blocks.blocks]
    parts = spread.split(sizes) if len(sizes) > 1 else (spread,)
    return [
        part.unflatten(0, (block.count, block.width)).transpose(1, 2)
        for part, block in zip(parts, blocks.blocks, strict=True)
    ]


class _Spread(Function):
    """rows [T, ...] -> rows[source] [P, ...]. The gradients of places without a token are zero, as nothing reads them."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, source: Tensor, place: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(place)
        return rows.index_select(0, source)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, incoming: Tensor) -> Any:  # type: ignore[override]
        return incoming.index_select(0, ctx.saved_tensors[0]), None, None


class _Take(Function):
    """rows [P, ...] -> rows[place] [T, ...], where no place is taken twice."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, place: Tensor, places: int) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(place)
        ctx.places = places
        return rows.index_select(0, place)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, incoming: Tensor) -> Any:  # type: ignore[override]
        gradient = incoming.new_zeros(ctx.places, *incoming.shape[1:])
        gradient[ctx.saved_tensors[0]] = incoming
        return gradient, None, None


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


def _blocks(borders: Tensor) -> _Blocks:
    """Every layer asks with the same tensor; the device is asked for its values once."""
    blocks: _Blocks | None = getattr(borders, _BLOCKS, None)
    if blocks is None:
        blocks = _divide(borders.tolist(), borders.device)
        setattr(borders, _BLOCKS, blocks)
    return blocks


def _divide(borders: list[int], device: torch.device) -> _Blocks:
    segments = sorted(itertools.pairwise(borders), key=lambda span: span[0] - span[1])  # the longest first
    groups: list[list[tuple[int, int]]] = []
    for start, end in segments:
        if groups and _joins(end - start, groups[-1][0][1] - groups[-1][0][0]):
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
    return _Blocks(tuple(blocks), *tables)


def _joins(length: int, width: int) -> bool:
    return length >= _FILLED * width or width - length <= _FREE
