"""An operation of a template that Python cannot interrupt ends its process, and whoever started it says why."""

from __future__ import annotations

import signal
import subprocess
import sys

from finetune.recipe.machine import cause_of_signal

RENDER = """
import sys
from finetune.tasks.text.template_limits import rendering_limits
with rendering_limits(float(sys.argv[1])):
    print(len(("\\u00e9" * 100_000_000).translate({1: 2})))
"""


def test_an_operation_without_end_ends_the_process() -> None:
    ended = subprocess.run([sys.executable, "-c", RENDER, "0.01"], capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGVTALRM, ended
    assert ended.stdout == ""
    assert "a chat template did not end in time" in cause_of_signal(signal.SIGVTALRM)


def test_one_that_ends_does_not() -> None:
    ended = subprocess.run([sys.executable, "-c", RENDER, "30"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "100000000\n"), ended
