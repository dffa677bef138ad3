"""A verb that runs on ranks: in the process that a user starts it launches them, in a process of a launcher it is one."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any

from finetune.app.supervise import as_worker, is_worker
from finetune.distributed.forking import fork_here
from finetune.distributed.launch import die_with_parent
from finetune.distributed.quick_imports import quick_imports
from finetune.distributed.replica_place import ReplicaPlace
from finetune.terminal import phase, print_line

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
    fork_here(lambda: _load(verb, options), die_with_parent)
    with as_worker():
        _load(verb, options).work(**options)


def _load(verb: str, options: Mapping[str, Any]) -> Any:
    """The rank's part of a verb, and the libraries that it is going to need; seconds, the first time."""
    name = f"finetune.app.workers.{verb}"
    if name in sys.modules:  # in the process that this one was forked from
        return sys.modules[name]
    place = ReplicaPlace.from_environ()
    first = os.environ.get("RANK", "0") == "0" and (place is None or place.is_reader)
    with phase("importing libraries", print_line if first else lambda line: None), quick_imports():
        worker = importlib.import_module(f"finetune.app.workers.{verb}")
        if hasattr(worker, "load_libraries"):
            worker.load_libraries(options["recipe"], options["sets"])
    return worker
