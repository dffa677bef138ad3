"""Proves that the scripts of docs/your-data.md, which convert data that is not read as it is, do what the page says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "your-data.md").read_text(encoding="utf-8")


def run(folder: Path, word: str) -> subprocess.CompletedProcess[str]:
    """Runs the one script that contains a word."""
    (script,) = (code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if word in code)
    return subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)


def test_spans_become_words_and_tags(tmp_path: Path) -> None:
    rows = [
        {"text": "Ann Lee left Rome.", "spans": [{"start": 0, "end": 7, "label": "PER"}]},
        {"text": "in Rome's center", "entities": [[3, 7, "LOC"]]},
    ]
    (tmp_path / "spans.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run(tmp_path, "spans.jsonl")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "row 2: 'Rome' becomes \"Rome's\"\n"
    found = [json.loads(line) for line in (tmp_path / "words.jsonl").read_text().splitlines()]
    assert found[0] == {"tokens": ["Ann", "Lee", "left", "Rome", "."], "tags": ["B-PER", "I-PER", "O", "O", "O"]}
    assert found[1]["tags"] == ["O", "B-LOC", "O"]
    overlap = {"text": "Ann", "spans": [{"start": 0, "end": 3, "label": "A"}, {"start": 1, "end": 2, "label": "B"}]}
    (tmp_path / "spans.jsonl").write_text(json.dumps(overlap) + "\n")
    assert "row 1" in run(tmp_path, "spans.jsonl").stderr


def test_columns_of_classes_become_lists(tmp_path: Path) -> None:
    (tmp_path / "comments.csv").write_text("text,toxic,obscene,threat\na,1,0,1\nb,0,0,0\n")
    done = run(tmp_path, "comments.csv")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in (tmp_path / "comments.jsonl").read_text().splitlines()]
    assert found == [{"text": "a", "label": ["toxic", "threat"]}, {"text": "b", "label": []}]
