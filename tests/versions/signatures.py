"""The signature of a dotted name in the libraries that this Python has. Needs nothing of `finetune`, so that it runs in an
environment of the oldest admitted versions.

    python signatures.py < names.json > signatures.json
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

ANY = "**"  # stands for keywords that a signature takes without naming them
MISSING, UNKNOWN = "missing", "unknown"  # no such name; no signature (compiled)


def signature_of(name: str) -> list[str] | str:
    """Parameter names, with ANY for **kwargs; MISSING; or UNKNOWN for what has none, such as compiled functions."""
    found, value = resolve(name)
    if not found:
        return MISSING
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return UNKNOWN
    names = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    return [*names, ANY] if len(names) != len(parameters) else names


def resolve(name: str) -> tuple[bool, Any]:
    """(whether it is there, the value of a dotted name): the longest prefix is imported, the rest are attributes."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        with contextlib.redirect_stdout(sys.stderr):
            try:
                value = importlib.import_module(".".join(parts[:length]))
            except ModuleNotFoundError:
                continue
        for part in parts[length:]:
            try:
                value = getattr(value, part)
            except (AttributeError, ImportError):  # ImportError: a placeholder for what needs another package
                return False, None
        return True, value
    return False, None


def names_attribute(module: str, attribute: str) -> bool:
    """Whether the source of a module names an attribute. The module is not imported."""
    return re.search(rf"\b{re.escape(attribute)}\b", _source(module)) is not None


@cache
def _source(module: str) -> str:
    root, _, rest = module.partition(".")
    spec = importlib.util.find_spec(root)
    if spec is None or not spec.submodule_search_locations:
        return ""
    path = Path(next(iter(spec.submodule_search_locations))).joinpath(*rest.split("."))
    file = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
    return file.read_text("utf-8") if file.is_file() else ""


def record(names: list[str], attributes: dict[str, str], libraries: list[str]) -> dict[str, Any]:
    """What these names are here: {"versions", "signatures", "attributes"}."""
    return {
        "versions": {library: importlib.metadata.version(library) for library in libraries},
        "signatures": {name: signature_of(name) for name in names},
        "attributes": {name: names_attribute(module, name) for name, module in attributes.items()},
    }


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    json.dump(record(asked["names"], asked["attributes"], asked["libraries"]), sys.stdout, indent=1, sort_keys=True)
