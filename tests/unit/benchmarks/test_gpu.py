"""Proves what the table of a GPU rests on: a job's result, nothing left of a job whose time is up, and the verdicts."""

import json
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.gpu.__main__ import fill, write
from benchmarks.gpu.jobs import Job
from benchmarks.gpu.ours import measured
from benchmarks.gpu.rows import CPU, GPU, Row, faster, make_rows

CHILD = "import subprocess, sys, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"


def job(tmp_path, code, **rest):
    return Job("job", [sys.executable, "-c", code], tmp_path / "job.log", **rest)


def test_a_result_is_the_last_line_that_is_marked(tmp_path):
    code = 'print("noise"); print(\'RESULT {"a": 1}\'); print(\'RESULT {"a": 2}\'); print("bye")'
    assert job(tmp_path, code).run(20) == {"a": 2}


def test_a_job_that_fails_says_its_last_line(tmp_path):
    assert job(tmp_path, "raise SystemExit('no such file')").run(20) == {"not run": "exit code 1: no such file"}


def test_nothing_is_left_of_a_job_whose_time_is_up(tmp_path):
    result = job(tmp_path, CHILD).run(1.0)
    assert result["not run"].startswith("killed after 1 s")
    child = int((tmp_path / "job.log").read_text())
    for _ in range(100):
        if not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.05)
    pytest.fail("the job's child lives")


RANK = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
LAUNCHER = f"""
import subprocess, sys, time
rank = subprocess.Popen([sys.executable, "-c", {RANK!r}], start_new_session=True, stdout=subprocess.PIPE)
rank.stdout.readline()
print(rank.pid, flush=True)
time.sleep(60)
"""


def test_ranks_in_sessions_of_their_own_that_ignore_signals_are_killed_too(tmp_path):
    path = tmp_path / "job.log"
    job(tmp_path, LAUNCHER, watch=lambda: {} if path.read_text().strip() else None).run(30)
    child = int(path.read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_a_row_for_which_no_time_is_left_says_so(tmp_path):
    never = job(tmp_path, "raise SystemExit(1)")
    filled = {"name": "row", "title": "a row", "sides": {}}
    fill(Row("row", "a row", [never], {"ours": never, "peer": never}, faster(1.0)), filled, time.monotonic() + 3, list)
    assert filled["sides"] == {side: {"not run": "no time left"} for side in ("ours", "peer")}


def test_a_watched_job_ends_with_what_is_seen(tmp_path):
    began = time.monotonic()
    assert job(tmp_path, CHILD, watch=lambda: {"seen": 1}).run(30) == {"seen": 1}
    assert time.monotonic() - began < 10


def test_our_side_is_read_from_the_journal(tmp_path):
    rows = [
        {
            "step": step,
            "split": "train",
            "time": 100 + 2.0 * step,
            "units_per_second": 50.0,
            "loss": 1.0,
            "memory_bytes": 7,
        }
        for step in range(1, 15)
    ]
    journal = tmp_path / "metrics.jsonl"
    assert measured(journal, 14) is None
    journal.write_text("\n".join(map(json.dumps, rows[:-1])) + '\n{"step"')
    assert measured(journal, 14) is None
    journal.write_text("\n".join(map(json.dumps, rows)))
    result = measured(journal, 14)
    assert (result["step_seconds"], result["tokens_per_second"], result["peak_bytes"]) == (2.0, 50.0, 7)


def side(rate, peak=1):
    return {"tokens_per_second": rate, "peak_bytes": peak, "step_seconds": 1.0}


def test_verdicts():
    assert faster(1.25)({"ours": side(130), "peer": side(100)}) == (True, "1.30 x (goal 1.25)")
    assert not faster(1.25)({"ours": side(120), "peer": side(100)})[0]
    assert not faster(1.0, memory=1.0)({"ours": side(130, 11), "peer": side(100, 10)})[0]


@pytest.mark.parametrize("sizes", [CPU, GPU])
def test_every_row_of_the_table_is_there(tmp_path, sizes):
    rows = make_rows(tmp_path, sizes)
    assert [row.name for row in rows] == [
        "full-fp32-masters", "full-bf16", "packed", "lora-8b", "loss-head", "resnet-50", "vit-b",
    ]  # fmt: skip
    assert all(len(row.sides) >= 2 for row in rows)


def test_a_row_is_written_as_far_as_it_got(tmp_path):
    good = job(tmp_path, 'print(\'RESULT {"tokens_per_second": 9, "peak_bytes": 1, "step_seconds": 1}\')')
    row = Row("row", "a row", [], {"ours": good, "TRL + Liger": job(tmp_path, "")}, faster(1.0))
    filled = {"name": "row", "title": "a row", "sides": {}}
    machine = {"device": "none", "versions": {"torch": "2", "trl": None}}
    report = {"machine": machine, "matmul_flops": None, "rows": [filled]}
    fill(row, filled, time.monotonic() + 30, lambda: write(report, tmp_path / "out"))
    assert json.loads(Path(tmp_path / "out.json").read_text())["rows"][0]["sides"]["ours"]["tokens_per_second"] == 9
    assert "| a row | ours | 9 per second" in (tmp_path / "out.md").read_text()
    assert "met" not in filled and "not run" in filled["sides"]["TRL + Liger"]
