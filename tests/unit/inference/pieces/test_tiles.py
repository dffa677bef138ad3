"""Tiles cover every pixel, are of one size, and stand together for the pixels of the image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.inference.pieces.spans import span_shares, span_starts
from finetune.inference.pieces.tiles import cut_image


@given(st.integers(1, 400), st.integers(1, 60), st.data())
def test_spans_cover_a_line_in_one_size(length: int, size: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, size - 1))
    starts = span_starts(length, size, overlap)
    ends = [min(start + size, length) for start in starts]
    assert starts[0] == 0 and ends[-1] == length
    assert all(end - start == min(size, length) for start, end in zip(starts, ends, strict=True))
    shared = [end - start for end, start in zip(ends, starts[1:], strict=False)]
    assert all(one == overlap for one in shared[:-1]), "only the last pair may share more"
    assert all(overlap <= one < size for one in shared)
    assert len(set(starts)) == len(starts)


@given(st.integers(1, 300), st.integers(1, 60), st.data())
def test_shares_count_every_place_once(length: int, size: int, data: st.DataObject) -> None:
    starts = span_starts(length, size, data.draw(st.integers(0, size - 1)))
    cover = np.zeros(length)
    for start in starts:
        cover[start : start + size] += 1
    expected = [float((1 / cover[start : start + size]).sum()) for start in starts]
    assert span_shares(starts, size, length) == pytest.approx(expected)
    assert sum(expected) == pytest.approx(length)


@given(st.integers(1, 200), st.integers(1, 200), st.integers(8, 90), st.floats(0, 0.9))
def test_tiles_cover_an_image(width: int, height: int, tile: int, overlap: float) -> None:
    windows = cut_image(width, height, tile, overlap, whole_image=False)
    if width <= tile and height <= tile:
        assert windows == []
        return
    seen = np.zeros((height, width), int)
    for window in windows:
        assert window.right - window.left == min(tile, width) and window.bottom - window.top == min(tile, height)
        seen[window.top : window.bottom, window.left : window.right] += 1
    assert seen.min() >= 1
    assert sum(window.share for window in windows) == pytest.approx(width * height)
    assert len({window.corners for window in windows}) == len(windows) > 1


def test_the_whole_image_comes_first_and_counts_as_much_as_all_tiles() -> None:
    windows = cut_image(1000, 640, 640, 0.2, whole_image=True)
    assert [window.corners for window in windows] == [(0, 0, 1000, 640), (0, 0, 640, 640), (360, 0, 1000, 640)]
    assert windows[0].share == 640_000 == windows[1].share + windows[2].share
