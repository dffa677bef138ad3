"""A process that a launcher started, as one rank: how it ends, and how its failure is reported. No torch here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune.distributed.env import from_environ
from finetune.distributed.failure import PeerFailed, report_failures
from finetune.distributed.held_folder import hold_folder
from finetune.distributed.launch import SUPERVISED
from finetune.distributed.rendezvous import given_folder
from finetune.distributed.replica_place import rank_number
from finetune.distributed.temporary_folder import own_temporary_folder
from finetune.ending import die_with_parent, end_process
from finetune.errors import EXIT_FAILED

# Launchers that are the parents of their ranks, and live as long as these: what kills one, such as a SIGUSR1 that it does not
# know, would leave them to train alone. A shell that exports RANK may well end before them.
PARENTS = ("accelerate", "deepspeed", "torchrun")


def is_worker() -> bool:
    """Whether a launcher started this process, ours or anyone's."""
    return SUPERVISED in os.environ or from_environ() is not None


@contextmanager
def as_worker() -> Iterator[None]:
    """Around everything that a worker does: it saves and stops when its launcher is gone, and each failure of a supervised
    one is reported.
    """
    logs, env = os.environ.get(SUPERVISED), from_environ()
    if logs or (env is not None and env.launcher in PARENTS):
        die_with_parent()
    if not logs:
        with own_temporary_folder():
            try:
                yield
            except PeerFailed:  # the rank that failed has reported why
                end_process(EXIT_FAILED)
        return
    if (private := given_folder()) is not None:
        hold_folder(private)  # until this process ends, which may be after the supervising one
    with report_failures(rank_number(), Path(logs), supervised=True):
        yield
