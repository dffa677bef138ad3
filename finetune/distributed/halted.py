"""Whether a process is halted: alive, and doing nothing until somebody sends it SIGCONT. No torch here."""

from __future__ import annotations

import psutil


def is_halted(process: int) -> bool:
    """Whether SIGSTOP, or Ctrl-Z, halts the process of this id; False for one that is gone."""
    try:
        return bool(psutil.Process(process).status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False
