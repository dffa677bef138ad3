"""Tests a conversation as a person and as a pipe has it: in a terminal of its own, with keys and signals, and on stdin."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

PROGRAM = [sys.executable, "-m", "tests.e2e.chat_program"]
ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60.0
NEXT = r"\n(?:\x1b\[\?2004h)?> "  # the program waits for a turn


class Terminal:
    """The program on a pseudo-terminal of 40 columns."""

    def __init__(self) -> None:
        self.master, slave = pty.openpty()
        environment = {**os.environ, "COLUMNS": "40", "TERM": "xterm"}
        self.process = subprocess.Popen(
            PROGRAM, cwd=ROOT, env=environment, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),
        )  # fmt: skip
        os.close(slave)
        self.seen = ""

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def until(self, pattern: str) -> str:
        """What came until `pattern`; it is taken away."""
        end = time.monotonic() + SECONDS
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < end, f"{pattern!r} did not come: {self.seen!r}"
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    self.seen += os.read(self.master, 4096).decode()
                except OSError:
                    assert re.search(pattern, self.seen), f"{pattern!r} did not come: {self.seen!r}"
        before, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return before


def test_a_conversation_in_a_terminal() -> None:
    terminal = Terminal()
    try:
        terminal.until("> ")
        terminal.type("SAY %[2J AND MORE WORDS THAN A LINE OF FORTY HAS ROOM FOR\r")
        shown = terminal.until(NEXT)
        assert "\x1b[2J" not in shown and r"\u001b[2J AND MORE" in shown
        assert all(len(line) < 40 for line in shown.split("\r\n")[1:])
        assert " ".join(shown.split("\r\n")[1:]).startswith(r"\u001b[2J AND MORE WORDS THAN A LINE OF FORTY")
        terminal.type("/HELP\r")
        assert "no command /HELP" in " ".join(terminal.until(NEXT).split())
        terminal.type("FAIL\r")
        assert "no reply: it broke" in terminal.until(NEXT)
        terminal.type("SLOWLY\r")
        terminal.until("A A A")
        terminal.type("\x03")  # Ctrl-C
        assert "(stopped)" in terminal.until(NEXT)
        time.sleep(0.5)  # the prompt is there a moment before the program waits at it
        terminal.type("\x03")
        assert "Ctrl-D or /exit leaves" in terminal.until(NEXT)
        for turn in range(3):
            terminal.type(f"SAY NUMBER {turn} IS LONG ENOUGH FOR THIS\r")
            shown = terminal.until(NEXT)
        assert "turns are left out" in " ".join(shown.split())
        terminal.type("\x04")  # Ctrl-D
        assert terminal.process.wait(SECONDS) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.master)


def test_a_pipe_has_one_turn_a_line() -> None:
    lines = "SAY ONE\n\n/reset\n  \nSAY %TWO\nFAIL\n" + "X" * 190 + "\nSAY THREE"
    ended = subprocess.run(PROGRAM, cwd=ROOT, input=lines, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert ended.stdout == "ONE\n\x1bTWO\n\nTHREE\n"  # as it is: no terminal reads it
    assert "it broke" in ended.stderr and "there is room for 180" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.returncode == 1  # turns without a reply


def test_a_pipe_whose_turns_are_all_answered_ends_with_0() -> None:
    ended = subprocess.run(
        PROGRAM, cwd=ROOT, input="SAY ONE\n", capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, "ONE\n")
