"""Proves that rows are converted anew when our code of roles changes, which lies outside of data/."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.data.prepare import file_digest
from finetune.data.sources.rows import convert_file
from finetune.recipe import roles
from finetune.recipe.data import SourceSection


def _converted(path: Path) -> str:
    rows = convert_file(path, "jsonl", SourceSection(source=str(path)), {"text": "text"}, (("text",),), None)
    folder = rows.__reduce__()[1][0]
    return str(folder)


def test_another_meaning_of_a_role_is_another_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = tmp_path / "rows.jsonl", Path.read_bytes
    path.write_text('{"text": "a"}\n', encoding="utf-8")
    before = _converted(path)
    assert _converted(path) == before
    changed = Path(roles.__file__).resolve()
    monkeypatch.setattr(Path, "read_bytes", lambda one: read(one) + (b"# changed" if one == changed else b""))
    monkeypatch.setattr(file_digest, "_sources", {})
    assert _converted(path) != before
