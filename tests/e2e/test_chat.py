"""Tests a conversation as a person and as a pipe has it: in a terminal of its own, with keys and signals, and on stdin."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAM = [sys.executable, "-m", "tests.e2e.chat_program"]
ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60.0
FIRST = r"(?m)^(?:\x1b\[\?2004h)?> "  # it waits for the first one, whatever warnings contain
NEXT = r"\n(?:\x1b\[\?2004h)?> "  # the program waits for a turn


class Terminal:
    """A program on a pseudo-terminal of 40 columns."""

    def __init__(self, command: list[str] = PROGRAM) -> None:
        self.master, self.slave = pty.openpty()
        environment = {**os.environ, "COLUMNS": "40", "TERM": "xterm"}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=self.slave, stdout=self.slave, stderr=self.slave, start_new_session=True,
            preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),
        )  # fmt: skip
        self.seen = ""

    @property
    def echoes(self) -> bool:
        """Whether the terminal shows what is typed."""
        return bool(termios.tcgetattr(self.slave)[3] & termios.ECHO)

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def until(self, pattern: str, seconds: float = SECONDS) -> str:
        """What came until `pattern`; it is taken away."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < end, f"{pattern!r} did not come: {self.seen!r}"
            if select.select([self.master], [], [], 0.2)[0]:
                self.seen += os.read(self.master, 4096).decode()
        before, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return before

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.slave)
        os.close(self.master)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    opened = Terminal()
    yield opened
    opened.close()


def test_a_conversation_in_a_terminal(terminal: Terminal) -> None:
    terminal.until(FIRST)
    terminal.type("SAY %[2J AND MORE WORDS THAN A LINE OF FORTY HAS ROOM FOR\r")
    shown = terminal.until(NEXT)
    assert "\x1b[2J" not in shown and r"\u001b[2J AND MORE" in shown
    assert all(len(line) < 40 for line in shown.split("\r\n")[1:])
    assert " ".join(shown.split("\r\n")[1:]).startswith(r"\u001b[2J AND MORE WORDS THAN A LINE OF FORTY")
    terminal.type("/HELP\r")
    assert "no command /HELP" in " ".join(terminal.until(NEXT).split())
    terminal.type("FAIL\r")
    assert "no reply: it broke" in terminal.until(NEXT)
    for turn in range(3):
        terminal.type(f"SAY NUMBER {turn} IS LONG ENOUGH FOR THIS\r")
        shown = terminal.until(NEXT)
    assert "turns are left out" in " ".join(shown.split())
    terminal.type("\x04")  # Ctrl-D
    assert terminal.process.wait(SECONDS) == 0


def test_ctrl_c_stops_a_reply_alone_and_at_the_prompt_it_leaves(terminal: Terminal) -> None:
    terminal.until(FIRST)
    for _ in range(3):
        terminal.type("SLOWLY\r")
        terminal.until("A A A")
        terminal.type("\x03")
        shown = terminal.until(NEXT)
        assert "(stopped)" in shown and "^C" not in shown
    terminal.type("\x03")  # the prompt is there a moment before the program waits at it
    terminal.until("interrupted")
    assert terminal.process.wait(SECONDS) == 130
    assert terminal.echoes


def test_ctrl_c_in_the_middle_of_a_turn_leaves(terminal: Terminal) -> None:
    terminal.until(FIRST)
    terminal.type("FIRST \\\rHALF A TU")
    terminal.until("HALF A TU")
    terminal.type("\x03")
    terminal.until("interrupted")
    assert terminal.process.wait(SECONDS) == 130


def test_keys_of_a_reply_are_not_shown_in_it_and_are_the_next_turn(terminal: Terminal) -> None:
    terminal.until(FIRST)
    terminal.type("BRIEFLY\r")
    terminal.until("A A A")
    assert not terminal.echoes
    terminal.type("SAY SO")
    shown = terminal.until(NEXT)
    assert set(shown.partition("\x1b")[0]) <= set("A \r\n> ")
    terminal.type("ON\r")
    assert "\nSOON" in terminal.until(NEXT)


@pytest.mark.usefixtures("sighup_heard")
@pytest.mark.parametrize(("number", "replies"), [(signal.SIGTERM, True), (signal.SIGHUP, False)])
def test_the_terminal_is_given_back_when_a_signal_ends_the_program(
    terminal: Terminal, number: signal.Signals, replies: bool
) -> None:
    terminal.until(FIRST)
    if replies:
        terminal.type("SLOWLY\r")
        terminal.until("A A A")
    else:
        time.sleep(0.1)  # until readline has changed the terminal
    assert not terminal.echoes
    terminal.process.send_signal(number)
    terminal.until(f"ended by {number.name}")
    assert terminal.process.wait(SECONDS) == -number
    assert terminal.echoes


PROMPTS = """
import readline
from finetune.app.chat_keys import Keyboard
with Keyboard():
    for turn in range(400):
        try:
            input("> ")
        except KeyboardInterrupt:
            print(f"noticed {turn}.")
"""


def test_no_ctrl_c_is_lost_at_a_prompt() -> None:
    terminal = Terminal([sys.executable, "-c", PROMPTS])
    try:
        for turn in range(400):
            terminal.until(FIRST)
            terminal.type("\x03")
            terminal.until(rf"noticed {turn}\.")
        assert terminal.process.wait(SECONDS) == 0
    finally:
        terminal.close()


ELSEWHERE = """
import readline, signal, threading, time
from finetune.app.chat_keys import Keyboard
waits = threading.Semaphore(0)
def interrupt():
    for _ in range(20):
        waits.acquire(), time.sleep(0.05)
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
with Keyboard():
    threading.Thread(target=interrupt, daemon=True).start()
    for turn in range(20):
        waits.release()
        try:
            input("> ")
        except KeyboardInterrupt:
            print(f"noticed {turn}.")
"""


def test_an_interrupt_that_another_thread_was_given_is_noticed_at_a_prompt() -> None:
    """The system call of the main thread goes on, as it does where a signal comes just before it."""
    terminal = Terminal([sys.executable, "-c", ELSEWHERE])
    try:
        for turn in range(20):
            terminal.until(rf"noticed {turn}\.")
        assert terminal.process.wait(SECONDS) == 0
    finally:
        terminal.close()


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
