"""What other code prints beside a live view: whole lines, and a log stays a log."""

from __future__ import annotations

import sys
from io import StringIO

import pytest
from rich.console import Console as Terminal

from finetune.tracking.beside_view import Redirection, WholeLines
from finetune.tracking.console import Console


class Tty(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("parts", "lines"),
    [
        (["one\ntwo\n"], ["one", "two"]),
        (["ha", "lf", "\n"], ["half"]),
        (["\r 10%", "\r 20%", "\r100%", "\n"], ["100%"]),
        (["10%\r", "20%\r", "done\n"], ["done"]),
        (["10%\r", "\n"], ["10%"]),
        (["windows\r\n", "\n"], ["windows", ""]),
        (["no end"], ["no end"]),
        (["5%\r", "6%\r"], ["6%"]),
        ([""], []),
    ],
)
def test_lines_are_written_when_they_are_whole(parts: list[str], lines: list[str]) -> None:
    written: list[str] = []
    stream = WholeLines(StringIO(), written.append)
    for part in parts:
        assert stream.write(part) == len(part)
        stream.flush()
    stream.close_line()
    stream.close_line()
    assert written == lines


def test_a_terminal_is_redirected_and_a_log_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, log, written = Tty(), StringIO(), list[str]()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", log)
    redirection = Redirection(written.append)
    redirection.start()
    print("for people")
    print("a warning", file=sys.stderr)
    print("half", end="")
    redirection.stop()
    redirection.stop()
    assert written == ["for people", "half"]
    assert log.getvalue() == "a warning\n" and terminal.getvalue() == ""
    assert sys.stdout is terminal and sys.stderr is log


def test_warnings_of_a_rank_reach_its_log_while_the_view_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    log = StringIO()
    monkeypatch.setattr(sys, "stdout", Tty())
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setenv("TERM", "xterm")
    console = Console(Terminal(highlight=False, force_terminal=True))
    console.started(start_step=0, total_steps=2, steps_per_epoch=2, facts={})
    console.step(step=1, epoch=0.5, progress={"loss": 1.0})
    print("a warning of a library", file=sys.stderr)
    console.finished(status="done", summary={})
    assert log.getvalue() == "a warning of a library\n"
    assert "a warning" not in sys.stdout.getvalue() and "done in" in sys.stdout.getvalue()  # type: ignore[attr-defined]
