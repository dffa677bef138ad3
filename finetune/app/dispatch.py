"""A verb that runs on ranks: in the process that a user starts it launches them, in a process of a launcher it is one."""

from __future__ import annotations

import importlib
from typing import Any

from finetune.app.supervise import as_worker, is_worker


def run_verb(verb: str, **options: Any) -> None:
    """`finetune.app.<verb>`, or the rank's part of it in `finetune.app.workers.<verb>`; both take the same options."""
    if not is_worker():
        getattr(importlib.import_module(f"finetune.app.{verb}"), verb)(**options)
        return
    with as_worker():
        importlib.import_module(f"finetune.app.workers.{verb}").work(**options)
