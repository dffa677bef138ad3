"""What a person sees: plain lines in a file, one live line in a terminal that is given back whatever happens."""

import os
import pty
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console as Terminal

from finetune.tracking.console import Console, describe_start
from finetune.units import format_figure

ROOT = Path(__file__).parents[3]
FACTS = {"model": "org/m", "parameters": 22_713_216, "ranks": 2, "unit": "token", "examples": {"train": 6400}}
FIGURES = {
    "loss": 0.5, "learning_rate": 5e-5, "units_per_second": 12_345.0, "padding_share": 0.13, "memory_bytes": 2**30,
}  # fmt: skip


def test_plain_lines_come_every_so_many_steps_and_at_each_evaluation():
    out = StringIO()
    console = Console(Terminal(file=out, width=60), log_every=10)
    console.started(start_step=0, total_steps=25, steps_per_epoch=25, facts=FACTS)
    for step in range(1, 26):
        console.step(step=step, epoch=step / 25, progress=FIGURES)
        console.row({"step": step, "epoch": step / 25, "split": "train", "loss": 0.5})
    console.row({"step": 25, "epoch": 1.0, "split": "validation", "loss": 0.4, "accuracy": 0.86125, "time": 1.0})
    console.checkpoint(Path("checkpoints/step-00000025"), step=25, best=True)
    console.message("[red]not markup[/red]")
    console.finished(status="done", summary={})
    lines = out.getvalue().splitlines()
    assert lines[0] == "org/m (22.7M parameters) · 6,400 train · 2 ranks on cpu"
    assert [line.split(" ·")[0] for line in lines[1:4]] == ["step 10/25", "step 20/25", "step 25/25"]
    for part in ("epoch 0.40", "loss 0.5000", "lr 5.00e-05", "12.3K tokens/s", "padding 13%", "1.0 GiB", "left"):
        assert part in lines[1], lines[1]
    assert "left" not in lines[3]
    assert lines[4] == "validation after epoch 1 (step 25): loss 0.4000 · accuracy 0.8612"
    assert lines[5] == "checkpoint step-00000025 (best so far)"
    assert lines[6] == "[red]not markup[/red]"
    assert lines[7].startswith("done in ") and len(lines) == 8


def test_slow_steps_still_give_a_line(monkeypatch):
    out, now = StringIO(), [0.0]
    monkeypatch.setattr("finetune.tracking.console.time.monotonic", lambda: now[0])
    console = Console(Terminal(file=out, width=60), log_every=1000)
    console.started(start_step=0, total_steps=9, steps_per_epoch=9, facts={})
    for step in range(1, 5):
        now[0] += 20
        console.step(step=step, epoch=0, progress={"loss": 1.0})
    assert out.getvalue().count("step ") == 2
    assert "1m40s left" in out.getvalue()  # 5 steps of 20 s


def test_the_time_left_does_not_count_an_evaluation_as_a_step(monkeypatch):
    out, now = StringIO(), [0.0]
    monkeypatch.setattr("finetune.tracking.console.time.monotonic", lambda: now[0])
    console = Console(Terminal(file=out, width=60), log_every=2)
    console.started(start_step=0, total_steps=12, steps_per_epoch=2, facts={})
    for step in (1, 2, 3, 4):
        now[0] += 1
        console.step(step=step, epoch=0, progress={})
        if step == 2:
            now[0] += 500
            console.row({"step": 2, "epoch": 1, "split": "validation", "loss": 1.0})
    assert "8.0s left" in out.getvalue()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.86125, "0.8612"),
        (1.2e-5, "1.20e-05"),
        (12, "12"),
        (3.0, "3"),
        (-0.0, "0"),
        (float("nan"), "nan"),
        (None, "None"),
        (123456.7, "1.23e+05"),
    ],
)
def test_figures_are_at_reading_precision(value, text):
    assert format_figure(value) == text


def test_a_start_without_facts_is_told_too():
    assert describe_start({}) == "model"
    assert "1 rank on cuda" in describe_start({"ranks": 1, "device": "cuda"})


SCRIPT = """
import signal, sys, time
from finetune.tracking.console import Console
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits that it is ignored
console = Console(log_every=1)
console.started(start_step=0, total_steps=50, steps_per_epoch=50, facts={"unit": "token"})
for step in range(1, 51):
    console.step(step=step, epoch=step / 50, progress={"loss": 1 / step})
    time.sleep(0.02)
    if step == 10: print("a stray line of another library", flush=True)
    if step == 15:
        for part in ("\\rbar 1 of 3", "\\rbar 2 of 3", "\\rbar 3 of 3", "\\n"):
            print(part, end="", flush=True, file=sys.stderr)
    if step == 20 and sys.argv[1] == "crash": raise RuntimeError("boom")
    if step == 20 and sys.argv[1] == "wait": time.sleep(60)
console.finished(status="done", summary={})
"""


@pytest.mark.parametrize("how", ["end", "crash", "wait"])
def test_a_terminal_gets_its_cursor_back(how):
    """In a real pseudo-terminal: at the end, after a crash, and on Ctrl-C."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, how], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    seen, sent, deadline = b"", False, time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        seen += part
        if how == "wait" and not sent and b"20/50" in seen:
            process.send_signal(signal.SIGINT)
            sent = True
    process.wait(timeout=10)
    os.close(ours)
    assert b"\x1b[?25l" in seen, "the live line hides the cursor"
    assert seen.rfind(b"\x1b[?25h") > seen.rfind(b"\x1b[?25l"), "and it is shown again"
    assert b"a stray line of another library" in seen
    assert seen.count(b"bar ") == 1 and b"bar 3 of 3" in seen, "a progress bar of another library is one line"
    assert sent == (how == "wait"), "the live line showed step 20 before Ctrl-C"
    assert (b"done in" in seen) == (how == "end")
    assert (process.returncode == 0) == (how == "end")
