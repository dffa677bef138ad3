"""The parts of a page, made one by one: a damaged file hides its own part alone, and the page says which."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")
D = TypeVar("D")

_DAMAGE = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError, OSError)
_MAPPINGS = ("facts", "summary", "machine", "versions", "wandb", "data")
_LISTS = ("sessions", "data_changes")


class Parts:
    """missing: the parts that could not be made, each with the reason."""

    def __init__(self) -> None:
        self.missing: list[str] = []

    def make(self, name: str, build: Callable[[], T], otherwise: D) -> T | D:
        """What `build` returns; `otherwise` where the files of the run do not hold what it expects."""
        try:
            return build()
        except _DAMAGE as error:
            self.missing.append(f"{name} ({type(error).__name__}: {error})")
            return otherwise


def sound_facts(facts: Mapping[str, Any], parts: Parts) -> dict[str, Any]:
    """run.json with sections of the right types: one of another type counts as empty, and is missing."""
    found = dict(facts)
    for keys, kind in ((_MAPPINGS, Mapping), (_LISTS, list)):
        for key in keys:
            if key in found and not isinstance(found[key], kind):
                parts.missing.append(f"{key} (run.json holds {type(found[key]).__name__} there)")
                del found[key]
    found["sessions"] = [one for one in found.get("sessions", []) if isinstance(one, Mapping) and _is_started(one)]
    return found


def _is_started(session: Mapping[str, Any]) -> bool:
    return isinstance(session.get("started"), (int, float))
