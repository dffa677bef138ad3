"""Proves that what was left out of used rows is counted by kind with its first places, and survives the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune.data.prepare.encode import encode
from finetune.data.prepare.notices import MAX_KINDS, Notices
from tests.tables import MemoryTable


def test_counts_and_first_places() -> None:
    notices, more = Notices(), Notices()
    for row in range(4):
        notices.add(f"a:{row}", ["cut", "cut"])
    more.add("b:1", ["cut", "joined"])
    notices.extend(more)
    assert notices.lines() == ["5 rows: cut (a:0, a:1, a:2, ...)", "1 row: joined (b:1)"]
    assert Notices(notices.listed).lines() == notices.lines()


def test_kinds_are_bounded() -> None:
    notices = Notices()
    for row in range(MAX_KINDS + 7):
        notices.add(f"a:{row}", [f"kind {row}"])
    assert len(notices.lines()) == MAX_KINDS + 1
    assert notices.lines()[0].startswith("7 rows: further notices")


def test_notices_are_stored_beside_the_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls: list[int] = []

    def function(rows: Any) -> list[dict[str, Any]]:
        calls.append(len(rows))
        return [{"input_ids": [1], **({"notices": ["odd"]} if row["n"] % 2 else {"notices": []})} for row in rows]

    table = MemoryTable("train", [{"n": number} for number in range(5)])
    for _ in range(2):
        examples = encode(table, function, key="k", on_bad_row="error", cost=lambda example: 1)
        assert examples.notices.lines() == ["2 rows: odd (train row 1, train row 3)"]
        assert set(examples[1]) == {"id", "input_ids"}
    assert calls == [5]
