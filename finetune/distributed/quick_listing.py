"""transformers lists what it exports faster. No torch here.

When it is imported, transformers reads the 1,600 files of its models for the names that they export, then, with the first
model, once more, and asks each of their 1.8 million lines whether it begins with `__all__`.
Here the files are read once, and the lines before the list are passed over. What is found is the same.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

MODULE = "transformers.utils.import_utils"


@contextmanager
def quick_listing() -> Iterator[None]:
    """Inside, transformers is imported with it, if it has not been imported yet."""
    if MODULE in sys.modules:
        yield
        return
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Finder:
    """Finds the module as Python does, to change its functions when it has been executed."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == MODULE else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_speed_up(module: ModuleType) -> None:
            execute(module)
            speed_up(module)

        spec.loader.exec_module = execute_and_speed_up  # type: ignore[method-assign]
        return spec


def speed_up(module: ModuleType) -> None:
    """Give its functions quick ones of the same results. A version that has not got them is left as it is."""
    names_of = getattr(module, "fetch__all__", None)
    if names_of is not None:
        setattr(module, "fetch__all__", _from_the_list_on(names_of))  # noqa: B010 (no attribute that a type checker knows)
    scan = getattr(getattr(module, "create_import_structure_from_path", None), "__wrapped__", None)
    if scan is not None:  # calls itself by its global name, and forgets all but 128 of 550 folders
        setattr(module, "create_import_structure_from_path", functools.cache(scan))  # noqa: B010


def _from_the_list_on(names_of: Callable[[str], list[str]]) -> Callable[[str], list[str]]:
    """names_of: the names that a file's text exports, from the last line that begins with `__all__`."""

    def quick_names_of(text: str) -> list[str]:
        start = 0 if text.startswith("__all__") else text.find("\n__all__") + 1
        return names_of(text[start:])

    return quick_names_of
