"""Preparation by a child of this process, which ends with it. No torch in this process."""

from __future__ import annotations

from pathlib import Path

from finetune.app.apart import run_apart
from finetune.app.preparation.entry import find_prepared, read_manifest
from finetune.app.preparation.request import Request
from finetune.terminal import phase


def ensure_prepared(request: Request, workers: int | None = None) -> Path:
    """The folder of the entry; prepared by a child of this process if there is none. No torch in this process.

    workers: processes that encode; None: one for each core.
    Raises: UserError for data that cannot be used; KeyboardInterrupt, Stopped or TrainingFailed if it does not end.
    """
    names = request.names()
    found = find_prepared(names)
    if found is not None:
        request.check_data((read_manifest(found) or {})["data"])
        return found
    target = "finetune.app.workers.preparing:prepare_apart"
    with phase("preparing the data"):
        return Path(run_apart(target, request, names, workers, doing="prepares the data"))
