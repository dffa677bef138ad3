"""Proves that the script of docs/your-data.md turns a YOLO data set into rows, and that the data set itself is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.data.sources.image_folder import find_classes
from finetune.errors import UserError

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "your-data.md").read_text(encoding="utf-8")


def test_a_yolo_data_set_becomes_rows(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for folder in ("images", "labels"):
            (tmp_path / folder / split).mkdir(parents=True)
        for name in ("a", "b", "c"):
            (tmp_path / "images" / split / f"{name}.jpg").write_bytes(b"x")
    (tmp_path / "labels/train/a.txt").write_text("1 0.5 0.5 0.25 0.1\n\n0 0.2 0.2 0.1 0.1\n")
    (tmp_path / "labels/train/b.txt").write_text("")
    with pytest.raises(UserError, match="looks like a YOLO data set"):
        find_classes(tmp_path)
    (script,) = (code for code in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "data.yaml" in code)
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert rows == [
        {
            "image": "images/train/a.jpg",
            "objects": {"bbox": [[0.5, 0.5, 0.25, 0.1], [0.2, 0.2, 0.1, 0.1]], "category": ["WBC", "RBC"]},
        },
        {"image": "images/train/b.jpg", "objects": {"bbox": [], "category": []}},
        {"image": "images/train/c.jpg", "objects": {"bbox": [], "category": []}},
    ]
