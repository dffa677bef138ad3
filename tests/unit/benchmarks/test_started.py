"""Proves that `python -m benchmarks` knows its scripts and their options, and says which of them failed."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import __main__ as every


@pytest.mark.parametrize("name", every.SCRIPTS)
def test_each_script_is_there_and_takes_its_options(name: str) -> None:
    found = find_spec(f"benchmarks.{name}")
    assert found is not None and found.origin is not None
    texts = {
        node.value for node in ast.walk(ast.parse(Path(found.origin).read_text())) if isinstance(node, ast.Constant)
    }
    asked = [word for word in every.SCRIPTS[name].split() if word.startswith("--")]
    assert "__main__" in texts and texts.issuperset(asked)


def test_one_that_fails_does_not_keep_the_others_from_running(monkeypatch, capfd) -> None:
    started = []

    def run(command, check):
        started.append(command[2:])
        return type("Done", (), {"returncode": 3 if "benchmarks.traffic" in command else 0})

    monkeypatch.setattr(every.subprocess, "run", run)
    assert every.main(["--small", "traffic", "pipeline"]) == 1
    assert started == [["benchmarks.traffic", "--ranks", "2"], ["benchmarks.pipeline", "--steps", "2"]]
    assert "failed: traffic" in capfd.readouterr().out
    assert every.main(["pipeline"]) == 0 and started[-1] == ["benchmarks.pipeline"]
    with pytest.raises(SystemExit):
        every.main(["pipelines"])
