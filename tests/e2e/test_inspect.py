"""Proves `finetune inspect` from end to end, for texts, conversations and images: exit codes, what is printed, the page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from finetune.errors import EXIT_DONE, EXIT_FAILED
from tests.contract.examples import EXAMPLES
from tests.faults import Finished, run_finetune

SECONDS = 240


def write_recipe(folder: Path, task: str) -> Path:
    """The tiny example of a task, with its own data as validation: every row of it leaks."""
    example = next(one for one in EXAMPLES if one.task == task)
    values = example.recipe(folder)
    values["data"]["validation"] = values["data"]["train"]
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize("task", ["causal_lm", "object_detection"])
def test_inspect(tmp_path: Path, task: str, finetune: Callable[..., Finished]) -> None:
    write_recipe(tmp_path, task)
    done = finetune("inspect", "tiny.yaml", "--strict", "--html", "page.html", folder=tmp_path)
    assert done.code == EXIT_FAILED, done.output
    assert "error  leak (8 rows)" in done.output
    assert "validation row 7" not in done.output, "five rows of a finding are shown"
    assert "and 3 more" in done.output
    assert "train row 0" in done.output
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "validation row 7" in page
    assert ("data:image/png" in page) == (task == "object_detection")
    assert not list(tmp_path.glob(".page*"))
    assert not (tmp_path / "runs").exists()


def test_inspect_as_json(tmp_path: Path) -> None:
    write_recipe(tmp_path, "text_classification")
    done = run_finetune(["inspect", "tiny.yaml", "--json", "--row", "3"], SECONDS, folder=tmp_path)
    assert done.code == EXIT_DONE, done.output
    report = json.loads(next(line for line in done.output.splitlines() if line.startswith("{")))
    assert [row["id"] for row in report["rows"]] == [3]
    assert [one["kind"] for one in report["findings"] if one["severity"] == "error"] == ["leak"]
