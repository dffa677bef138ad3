"""A verb that runs on ranks: in the process that a user starts it launches them, in a process of a launcher it is one."""

from __future__ import annotations

import importlib
import os
from typing import Any

from finetune.app.supervise import as_worker, is_worker

# Read by tqdm, huggingface_hub, transformers and datasets when they are imported.
NO_BARS = ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")


def run_verb(verb: str, **options: Any) -> None:
    """`finetune.app.<verb>`, or the rank's part of it in `finetune.app.workers.<verb>`; both take the same options."""
    if not is_worker():
        getattr(importlib.import_module(f"finetune.app.{verb}"), verb)(**options)
        return
    for (
        name
    ) in NO_BARS:  # of libraries, such as "Writing model shards": they would break into the live view and the logs
        os.environ.setdefault(name, "1")
    with as_worker():
        importlib.import_module(f"finetune.app.workers.{verb}").work(**options)
