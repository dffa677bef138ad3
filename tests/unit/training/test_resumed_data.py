"""Proves that what a run is trained on is kept with it, and that a training which continues with other data says so."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune.app.workers import resuming
from finetune.app.workers.resuming import find_start, keep_data_record
from finetune.tracking.atomic_files import publish_json
from finetune.tracking.run import Run


def record(rows: int, content: str) -> dict[str, Any]:
    return {"rows": rows, "content": content, "files": [{"name": "train.csv", "rows": rows, "content": content}]}


def test_other_rows_than_before_are_reported_and_kept(tmp_path: Path) -> None:
    lines: list[str] = []
    listener: Any = SimpleNamespace(message=lines.append)
    run, start = Run(tmp_path), SimpleNamespace(path=tmp_path / "checkpoints" / "step-00000004", step=4)
    publish_json(run.file, {})

    def keep(start: Any, **splits: dict[str, Any]) -> dict[str, str]:
        lines.clear()
        return keep_data_record(run, start, splits, listener)

    before = {"train": record(400, "a"), "validation": record(10, "v")}
    assert keep(start, train=record(400, "a")) == {} and not lines  # a run of an earlier version kept nothing
    assert keep(None, **before) == {} and keep(start, **before) == {} and not lines
    assert keep(start, train=record(1, "b"), validation=record(10, "v")) == {
        "train": "400 rows, and now 1; train.csv had 400 rows, and now has 1"
    }
    assert "THE DATA HAS CHANGED since step-00000004: train: 400 rows, and now 1" in lines[0]
    assert keep(start, train=record(1, "b"), validation=record(10, "v")) == {}
    assert keep(start, train=record(1, "b")) == {"validation": "had 10 rows, and now has none"}
    assert [change["step"] for change in run.read()["data_changes"]] == [4, 4]


def test_runs_of_earlier_versions_know_only_how_many_rows_there_were(tmp_path: Path) -> None:
    lines: list[str] = []
    listener: Any = SimpleNamespace(message=lines.append)
    run, start = Run(tmp_path), SimpleNamespace(path=tmp_path / "checkpoints" / "step-00000004", step=4)
    publish_json(run.file, {"data": {"train": {"rows": 4, "digest": "of another kind"}}})
    assert keep_data_record(run, start, {"train": record(4, "a")}, listener) == {}
    assert len(lines) == 1 and "earlier version" in lines[0]
    publish_json(run.file, {"data": {"train": {"rows": 4, "digest": "of another kind"}}})
    assert "train" in keep_data_record(run, start, {"train": record(5, "a")}, listener)


@pytest.mark.parametrize(("changed", "counts"), [("train", True), ("validation", False)])
def test_the_best_checkpoint_counts_unless_the_validation_data_is_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str, counts: bool
) -> None:
    """On both ranks alike, though rank 0 alone reads run.json; each change of data is another version."""
    checkpoint: Any = SimpleNamespace(path=tmp_path / "checkpoints" / "step-00000004", step=4)
    monkeypatch.setattr(resuming, "find_checkpoints", lambda *of: (checkpoint, checkpoint))
    before = {"train": record(400, "a"), "validation": record(10, "v")}
    publish_json(Run(tmp_path).file, {"data": before, "data_changes": [{"step": 2, "changes": ["train: other rows"]}]})
    lines: list[str] = []
    listener: Any = SimpleNamespace(message=lines.append)
    sent: list[Any] = []
    main: Any = SimpleNamespace(is_main=True, broadcast=lambda value: sent.append(value) or value)
    other: Any = SimpleNamespace(is_main=False, broadcast=lambda value: sent[-1])
    now = {**before, changed: record(11, "x")}
    starts = [find_start(rank, Run(tmp_path), None, "auto", now, listener) for rank in (main, other)]  # type: ignore[arg-type]
    assert starts[0] == starts[1] and starts[0].data_version == 3 and starts[0].checkpoint is checkpoint
    assert (starts[0].best is checkpoint) == counts
    assert any("does not count any more" in line for line in lines) != counts
