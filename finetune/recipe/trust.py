"""Whether this command line trusts what a folder brings: `--trust-remote-code`, accepted by every command.

A recipe that a user writes and names may ask for the model's own code. A run folder or a model folder that came from
somebody else may not: its word counts only together with this option. The ranks get it from the process that starts them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

OPTION = "--trust-remote-code"

_given: list[bool] = []


def trust_remote_code() -> None:
    """For the rest of this process, as the command line says."""
    _given.append(True)


def is_trusted() -> bool:
    """Whether code that comes with a model may be run."""
    return bool(_given)


@contextmanager
def trusted(value: bool = True) -> Iterator[None]:
    """For the time of a block, as a caller from Python says."""
    before = list(_given)
    _given[:] = [True] if value else []
    try:
        yield
    finally:
        _given[:] = before
