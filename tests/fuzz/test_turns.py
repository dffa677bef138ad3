"""`python -m tests.fuzz` reaches every test whatever the others cost, ends in time, and says how a finding is repeated."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

TESTS = """
import os
import time

from hypothesis import given, settings, strategies as st

fuzz = settings(max_examples=int(os.environ["FINETUNE_FUZZ_INPUTS"]), deadline=None, database=None)

@fuzz
@given(st.integers(0, 10**6))
def test_slow(value):
    time.sleep(0.004)

@fuzz
@given(st.integers(0, 10**6))
def test_wrong(value):
    assert value < 500

@fuzz
@given(st.integers(0, 10**6))
def test_quick(value):
    pass

def test_without_inputs():
    raise SystemError
"""


def test_shares_of_the_time_and_a_finding(tmp_path: Path) -> None:
    (tmp_path / "test_three.py").write_text(TESTS)
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    root, began = Path(__file__).parents[2], time.monotonic()
    command = [sys.executable, "-m", "tests.fuzz", "--minutes", "0.06", str(tmp_path / "test_three.py")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=100, check=False)
    found = re.findall(r"([\d,]+) inputs, +([\d,]+) seeds, +([\d.]+) s, ([\w ]+): \S*::(\w+)", done.stdout)
    by_name = {name: (int(seeds.replace(",", "")), float(seconds), result) for _, seeds, seconds, result, name in found}
    assert done.returncode == 1, done.stdout + done.stderr
    assert time.monotonic() - began < 60 and list(by_name) == ["test_slow", "test_wrong", "test_quick"]
    assert by_name["test_wrong"][2] == "FINDING" and by_name["test_wrong"][0] == 1
    assert by_name["test_slow"][2] == by_name["test_quick"][2] == "no finding"
    assert by_name["test_quick"][0] > by_name["test_slow"][0] >= 1, "as many turns as fit into an equal share"
    assert "value=" in done.stdout and "AssertionError" in done.stdout
    repeat = re.search(
        r"repeat with: (FINETUNE_FUZZ_INPUTS=\d+) python -m pytest '\S*::test_wrong' (\S+=\d+)", done.stdout
    )
    assert repeat is not None
    again = ["env", repeat[1], sys.executable, "-m", "pytest", f"{tmp_path}/test_three.py::test_wrong", repeat[2]]
    assert "value=500" in subprocess.run(again, capture_output=True, text=True, cwd=tmp_path, check=False).stdout
