"""Proves that a process ends as it is told, whatever its endings do, and that nothing else ends one without them."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from finetune.ending import ended_by

ROOT = Path(__file__).resolve().parents[2]
HEAD = f"""
import os, signal, sys, time
sys.path.insert(0, {str(ROOT)!r})
from finetune import ending as ends
from finetune.ending import ended_by, end_process, ending
def tell(text):
    os.write(1, (text + " ").encode())
"""


def run(script: str) -> tuple[int, str]:
    """How the process ended, and what it wrote."""
    found = subprocess.run(
        [sys.executable, "-E", "-c", HEAD + script], capture_output=True, text=True, check=False, timeout=120
    )
    return found.returncode, found.stdout + found.stderr


def test_endings_run_last_first_and_what_was_printed_is_written() -> None:
    script = "with ending(lambda: tell('a')), ending(lambda: tell('b')):\n    print('c')\n    end_process(7)"
    assert run(script) == (7, "b a c\n")


def test_an_ending_that_fails_or_hangs_keeps_neither_the_others_nor_the_exit_code() -> None:
    script = (
        "ends.SECONDS = 1\nwith ending(lambda: tell('a')), ending(lambda: time.sleep(999)), ending(lambda: 1 / 0):\n"
        "    with ending(lambda: sys.exit(3)):\n        end_process(75)"
    )
    assert run(script) == (75, "a ")


def test_an_ending_runs_once_at_the_end_of_its_block() -> None:
    assert run("with ending(lambda: tell('a')):\n    tell('b')\nend_process(0)") == (0, "b a ")


def test_a_fork_ends_without_the_endings_of_its_parent() -> None:
    script = (
        "with ending(lambda: tell('a')):\n    if not os.fork():\n        end_process(0)\n    os.wait()\n    tell('b')"
    )
    assert run(script) == (0, "b a ")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)])
def test_a_signal_ends_the_process_as_ever_but_with_its_endings(number: int, code: int) -> None:
    script = (
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # not as children of a background job inherit it\n"
        "with ended_by(signal.SIGTERM, signal.SIGINT), ending(lambda: tell('a')):\n    try:\n"
        f"        os.kill(os.getpid(), {int(number)})\n    except BaseException:\n        tell('not an exception')"
    )
    assert run(script) == (code, "a " + "interrupted\n" * (code == 130))


def test_a_signal_that_is_ignored_or_handled_stays_so() -> None:
    script = (
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\nsignal.signal(signal.SIGTERM, lambda *given: tell('a'))\n"
        "with ended_by(signal.SIGTERM, signal.SIGINT):\n    for number in (signal.SIGTERM, signal.SIGINT):\n"
        "        os.kill(os.getpid(), number)\n"
    )
    assert run(script) == (0, "a ")


def test_handlers_come_back_and_those_that_were_set_inside_stay() -> None:
    before = signal.getsignal(signal.SIGUSR2)
    with ended_by(signal.SIGUSR2):
        assert signal.getsignal(signal.SIGUSR2) is not before
        thread = threading.Thread(target=lambda: ended_by(signal.SIGUSR2).__enter__())  # no handler can be set there
        thread.start()
        thread.join()
    assert signal.getsignal(signal.SIGUSR2) is before
    try:
        with ended_by(signal.SIGUSR2):
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_nothing_else_ends_a_process_without_its_endings() -> None:
    files = [path for path in (ROOT / "finetune").rglob("*.py") if "os._exit(" in path.read_text(encoding="utf-8")]
    assert [path.name for path in files] == ["ending.py"]
