"""Tokens of a row that belong to two segments, such as a prompt with two replies: held and computed once, and spread out for
attention alone, where each segment is whole.

Every other layer sees each token by itself, and a causal model's state of a prompt does not depend on what follows. So the
numbers are those of two separate sequences, and gradients of both arrive at the one prompt.

Shapes: T tokens of the row, P places of all segments one after the other (P >= T), D tokens with a second place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

SOURCE, PLACE, AGAIN = "shared_source", "shared_place", "shared_again"  # names of model inputs


@dataclass(frozen=True)
class SharedTokens:
    """source: int64 [P], the token at each place. place: int64 [T], the first place of each token. again: int64 [2, D], tokens
    and their second places; None where no token has one.
    """

    source: Tensor
    place: Tensor
    again: Tensor | None = None

    @classmethod
    def of(cls, inputs: Mapping[str, Any]) -> SharedTokens | None:
        """Of a batch's inputs; None where its segments share nothing."""
        if inputs.get(SOURCE) is None:
            return None
        return cls(inputs[SOURCE], inputs[PLACE], inputs[AGAIN])

    def spread(self, rows: Tensor) -> Tensor:
        """Tokens [T, ...] -> places [P, ...]. Places that are no token's own get no gradient, as nothing reads them."""
        out: Tensor = _Spread.apply(rows, self.source, self.place, self.again)
        return out

    def take(self, rows: Tensor) -> Tensor:
        """Places [P, ...] -> tokens [T, ...], each from its first place."""
        out: Tensor = _Take.apply(rows, self.place, len(self.source))
        return out


class _Spread(Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, source: Tensor, place: Tensor, again: Tensor | None) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(place, again)
        return rows.index_select(0, source)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, incoming: Tensor) -> Any:  # type: ignore[override]
        place, again = ctx.saved_tensors
        gradient = incoming.index_select(0, place)
        if again is not None:  # no token is there twice, so that the order of additions cannot matter
            gradient.index_add_(0, again[0], incoming.index_select(0, again[1]))
        return gradient, None, None, None


class _Take(Function):
    """No place is taken twice."""

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


def compose(outer: SharedTokens, inner: SharedTokens | None) -> SharedTokens:
    """`inner` spreads tokens over segments, `outer` these places over others: both as one step."""
    if inner is None:
        return outer
    again = None if inner.again is None else torch.stack((inner.again[0], outer.place[inner.again[1]]))
    return SharedTokens(inner.source[outer.source], outer.place[inner.place], again)
