"""What run.json may hold: it may come from a stranger, so that whoever reads it finds values of the kinds that were written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

TEXT, NUMBER, WHOLE = "text", "number", "whole number"
MAX_WHOLE = 1 << 53  # which a double holds exactly
_DATA = {"rows": WHOLE, "content": TEXT, "digest": TEXT}
SHAPE: dict[str, Any] = {  # a kind; {key: kind} for an object; [kind] for a list
    "id": TEXT,
    "name": TEXT,
    "task": TEXT,
    "created": TEXT,
    "status": TEXT,
    "process": {"host": TEXT, "pid": WHOLE, "started": NUMBER},
    "sessions": [{"started": NUMBER, "ended": NUMBER, "start_step": WHOLE, "step": WHOLE, "status": TEXT}],
    "machine": {"memory_bytes": NUMBER, "gpus": [TEXT]},
    "versions": {},
    "facts": {"unit": TEXT, "device": TEXT, "ranks": WHOLE, "parameters": NUMBER, "total_steps": WHOLE, "examples": {}},
    "summary": {"steps": WHOLE, "best_step": WHOLE, "best_metric": TEXT},
    "artifacts": TEXT,
    "plan": TEXT,
    "model_config": TEXT,
    "wandb": {"id": TEXT, "folder": TEXT, "url": TEXT},
    "data": {"train": _DATA, "validation": _DATA, "test": _DATA},
    "data_changes": [{"step": WHOLE, "changes": [TEXT]}],
    "removed_checkpoints": [{"name": TEXT, "bytes": NUMBER}],
}


def check_run(value: Any) -> dict[str, Any]:
    """The object, without null in place of an object or list. Raises: ValueError for a value of another kind, naming it."""
    return dict(_check(value, SHAPE, ""))


def _check(value: Any, shape: Any, place: str) -> Any:
    if shape is None or (value is None and place and place[-1] != "]"):
        return value
    if isinstance(shape, dict):
        if not isinstance(value, Mapping):
            raise ValueError(f"{place or 'it'} is not an object")
        return {
            key: _check(item, shape.get(key), f"{place}.{key}" if place else key)
            for key, item in value.items()
            if item is not None or not isinstance(shape.get(key), (dict, list)) or key == "process"
        }
    if isinstance(shape, list):
        if not isinstance(value, list):
            raise ValueError(f"{place} is not a list")
        return [_check(item, shape[0], f"{place}[{index}]") for index, item in enumerate(value)]
    if not _is(value, shape):
        raise ValueError(f"{place} is not a {shape}" if shape != TEXT else f"{place} is not text")
    return value


def _is(value: Any, kind: str) -> bool:
    if kind == TEXT:
        return isinstance(value, str)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return False
    return kind == NUMBER or (isinstance(value, int) and abs(value) <= MAX_WHOLE)
