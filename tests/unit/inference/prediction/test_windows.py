"""Proves that chunks hold each example once, within the budget, without mixing groups, and become small towards the end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from finetune.inference.prediction.windows import cut_into_chunks, row_bytes


@given(st.lists(st.tuples(st.integers(1, 200), st.integers(0, 1)), max_size=300), st.integers(1, 2000), st.booleans())
def test_each_example_once_and_within_the_budget(examples, budget, last):
    costs, groups = [cost for cost, _ in examples], [group for _, group in examples]
    chunks = cut_into_chunks(costs, budget, groups=groups, last=last)
    assert sorted(index for chunk in chunks for index in chunk) == list(range(len(costs)))
    for chunk in chunks:
        assert len({groups[index] for index in chunk}) == 1
        padded = len(chunk) * max(costs[index] for index in chunk)
        assert padded <= budget or len(chunk) == 1
    assert chunks == cut_into_chunks(costs, budget, groups=groups, last=last)


def test_the_example_of_the_docstring():
    assert cut_into_chunks([3, 9, 2, 4], 10) == [[1], [3, 0], [2]]
    assert cut_into_chunks([], 10) == []


def test_little_is_padded():
    costs = [1 + (7 * index) % 97 for index in range(8192)]
    chunks = cut_into_chunks(costs, 4096)
    padded = sum(len(chunk) * max(costs[index] for index in chunk) for chunk in chunks)
    assert padded < 1.03 * sum(costs)


def test_the_last_window_ends_with_small_chunks():
    costs = [10] * 4000
    plain, last = cut_into_chunks(costs, 1600), cut_into_chunks(costs, 1600, last=True)
    assert {len(chunk) for chunk in plain} == {160}
    sizes = [len(chunk) for chunk in last]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 125 and sizes[-1] <= 10
    assert len(last) < 250, "small chunks are few"


def test_bytes_of_rows_are_counted():
    assert row_bytes({"image": {"bytes": b"x" * 1000, "path": "a.png"}, "label": 3}) > 1000
    assert row_bytes(ValueError("a bad row")) < 100
