"""Tiles of an image: windows of one size that cover it, and the window of the whole image."""

from __future__ import annotations

from dataclasses import dataclass

from finetune.inference.pieces.spans import count_spans, span_shares, span_starts


@dataclass(frozen=True)
class Window:
    """A part of an image, in the pixels of the upright image: left, top, right, bottom.

    share: the pixels that the window stands for where scores are averaged: a pixel in k tiles counts 1/k for each.
    """

    left: int
    top: int
    right: int
    bottom: int
    share: float

    @property
    def corners(self) -> tuple[int, int, int, int]:
        """(left, top, right, bottom), as Pillow's crop takes them."""
        return self.left, self.top, self.right, self.bottom


def count_tiles(width: int, height: int, tile: int, overlap: float) -> int:
    """The tiles that cut_image makes of an image that is larger than one."""
    shared = int(tile * overlap)
    return count_spans(width, tile, shared) * count_spans(height, tile, shared)


def cut_image(width: int, height: int, tile: int, overlap: float, *, whole_image: bool) -> list[Window]:
    """Windows of tile x tile pixels that cover an image, row by row; [] for an image that is no larger than a tile.

    Neighbors share `overlap` of their side. The last row and column end at the border of the image, and are as large as
    the others. An image that is smaller than a tile in one direction has tiles of its own extent there.
    whole_image: one window of the whole image as well, before the tiles: for objects that are larger than a tile.
    """
    if width <= tile and height <= tile:
        return []
    shared = int(tile * overlap)
    lefts, tops = span_starts(width, tile, shared), span_starts(height, tile, shared)
    wide, high = span_shares(lefts, tile, width), span_shares(tops, tile, height)
    windows = [Window(0, 0, width, height, float(width * height))] if whole_image else []
    windows += [
        Window(left, top, min(left + tile, width), min(top + tile, height), x_share * y_share)
        for top, y_share in zip(tops, high, strict=True)
        for left, x_share in zip(lefts, wide, strict=True)
    ]
    return windows
