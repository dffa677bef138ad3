"""Where the ranks write what they print."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path

from finetune.distributed.replica_place import READER, process_name
from finetune.terminal import keep_output_in


def redirect_output(rank: int, logs: Path) -> None:
    """This rank's stderr, and the stdout of all ranks but 0, go to logs/rank-*.log; rank 0 talks to the user, and so does the
    reader, where there is one.
    """
    logs.mkdir(parents=True, exist_ok=True)
    log = os.open(rank_log(rank, logs), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log, 2)
    if rank not in (0, READER):
        os.dup2(log, 1)
    os.close(log)
    keep_output_in(rank_log(rank, logs))
    logging.captureWarnings(True)
    warnings.simplefilter("default")


def rank_log(rank: int, logs: Path) -> Path:
    """The log of rank `rank`."""
    return logs / f"{process_name(rank)}.log"
