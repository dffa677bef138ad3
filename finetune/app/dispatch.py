"""A verb that runs on ranks: in the process that a user starts it launches them, in a process of a launcher it is one."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

from finetune.app.opening import open_recipe
from finetune.app.worker import as_worker, is_worker
from finetune.distributed.env import as_environ, from_environ
from finetune.distributed.forking import fork_here
from finetune.distributed.launch import SUPERVISED
from finetune.distributed.quick_imports import quick_imports
from finetune.distributed.replica_place import ReplicaPlace
from finetune.distributed.waiting import wait_here
from finetune.ending import ended_by
from finetune.terminal import phase, print_line

# Read by tqdm, huggingface_hub, transformers and datasets when they are imported.
NO_BARS = ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")


def run_verb(verb: str, **options: Any) -> None:
    """`finetune.app.<verb>`, or the rank's part of it in `finetune.app.workers.<verb>`; both take the same options."""
    if not is_worker():
        with ended_by(signal.SIGINT):
            module = importlib.import_module(f"finetune.app.{verb}")
        getattr(module, verb)(**options)
        return
    _switch_bars_off()
    fork_here(lambda: _load(verb, options))
    if (given := from_environ()) is not None:  # srun and mpirun say it in words of their own; everybody else reads RANK
        os.environ.update(as_environ(given))
    with as_worker():
        _load(verb, options).work(**options)


def become_rank() -> list[str]:
    """In a process that waits to become a rank (distributed/waiting.py): import what it needs, and wait. Its arguments."""
    _switch_bars_off()
    return wait_here(lambda asked: _load(str(asked["verb"]), asked, silent=True))


def _switch_bars_off() -> None:
    """Of libraries, such as "Writing model shards": they would break into the live view and the logs."""
    for name in NO_BARS:
        os.environ.setdefault(name, "1")


def _load(verb: str, options: Mapping[str, Any], *, silent: bool = False) -> Any:
    """The rank's part of a verb, and the libraries that it is going to need; seconds, the first time."""
    name = f"finetune.app.workers.{verb}"
    if name in sys.modules:  # in the process that this one was forked from
        return sys.modules[name]
    if "recipe" in options and SUPERVISED not in os.environ and not silent:
        open_recipe(str(options["recipe"]), options["sets"])  # a mistake in it need not wait for libraries
    place = ReplicaPlace.from_environ()
    first = not silent and os.environ.get("RANK", "0") == "0" and (place is None or place.is_reader)
    with phase("importing libraries", print_line if first else lambda line: None), quick_imports():
        worker = importlib.import_module(f"finetune.app.workers.{verb}")
        if hasattr(worker, "load_libraries"):
            worker.load_libraries(options["recipe"], options["sets"])
    return worker
