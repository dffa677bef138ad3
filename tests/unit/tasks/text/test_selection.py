"""Long examples in pieces: every supervised token of every example in exactly one piece, none without a supervised token."""

from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from finetune.tasks.text.selection import PARTS, SplitExamples


class Rows:
    """Examples whose tokens are 100 * row + position."""

    def __init__(self, lengths, first):
        self.rows = [
            {
                "id": row,
                "input_ids": np.arange(length) + 100 * row,
                "spans": np.array([min(first, length - 1), length]),
                "reply_start": 1,
            }
            for row, length in enumerate(lengths)
        ]
        self.ids = np.arange(len(lengths))
        self.costs = np.array(lengths)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


@given(st.lists(st.integers(2, 90), min_size=1, max_size=8), st.integers(1, 30), st.integers(2, 20))
def test_pieces_hold_each_learned_token_once(lengths, first, limit):
    rows = Rows(lengths, first)
    split = SplitExamples(rows, limit)
    assert split.split_count == sum(length > limit for length in lengths)
    found = []
    for index in range(len(split)):
        piece = split[index]
        assert 1 <= len(piece["input_ids"]) == split.costs[index] <= limit
        spans = piece["spans"].reshape(-1, 2).tolist()
        assert any(high > max(low, 1) for low, high in spans) or lengths[piece["id"] // PARTS] <= limit
        found += [piece["input_ids"][position] for low, high in spans for position in range(low, high)]
    assert len(found) == len(set(found))
    for row in rows.rows:  # all but a last piece that is one token long, with nothing before it to predict it from
        low, high = row["spans"]
        supervised = {token for token in row["input_ids"][low:high].tolist() if token in found}
        missing = set(row["input_ids"][low:high].tolist()) - supervised
        assert all((token - 100 * row["id"]) % limit == 0 for token in missing)
    assert split.ids.tolist() == sorted(set(split.ids.tolist()))


def test_the_docstring_s_example():
    example = {"id": 3, "input_ids": np.array([5, 6, 7, 8, 2]), "spans": np.array([1, 5]), "reply_start": 1}
    rows = SimpleNamespace(ids=np.array([3]), costs=np.array([5]), __len__=lambda: 1)
    rows = type("One", (), {"ids": rows.ids, "costs": rows.costs, "__getitem__": lambda self, index: example})()
    split = SplitExamples(rows, 3)
    assert split.ids.tolist() == [3_000_000, 3_000_001]
    assert [split[i]["input_ids"].tolist() for i in (0, 1)] == [[5, 6, 7], [8, 2]]
    assert [split[i]["spans"].tolist() for i in (0, 1)] == [[1, 3], [0, 2]]
