"""Proves that a training which resumes with other rows than before says so."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from finetune.app.workers.resuming import report_data_changes
from finetune.tracking.atomic_files import publish_json
from finetune.tracking.run import Run


def test_other_rows_than_before_are_told(tmp_path: Path) -> None:
    lines: list[str] = []
    listener: Any = SimpleNamespace(message=lines.append)
    run, start = Run(tmp_path), SimpleNamespace(path=tmp_path / "checkpoints" / "step-00000004")
    publish_json(run.file, {})

    def report(start: Any, **splits: tuple[int, str]) -> list[str]:
        data = SimpleNamespace(
            rows={name: rows for name, (rows, _) in splits.items()},
            digests={name: digest for name, (_, digest) in splits.items()},
        )
        lines.clear()
        report_data_changes(run, start, data, listener)  # type: ignore[arg-type]
        return list(lines)

    assert report(start, train=(400, "a")) == []  # a run of an earlier version: nothing to compare with
    assert report(None, train=(400, "a"), validation=(10, "v")) == []
    assert report(start, train=(400, "a"), validation=(10, "v")) == []
    (said,) = report(start, train=(1, "b"), validation=(10, "v"))
    assert "THE DATA HAS CHANGED since step-00000004: train had 400 rows, and now has 1 row" in said
    assert report(start, train=(1, "b"), validation=(10, "v")) == []
    assert "validation had 10 rows, and now has none" in report(start, train=(1, "b"))[0]
