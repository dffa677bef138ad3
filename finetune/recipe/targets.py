"""Functions and classes named by text, as "module:attribute": a registry names what it chooses without importing it."""

from __future__ import annotations

import importlib
from typing import Any


def load_target(target: str) -> Any:
    """What "module:attribute" names; imports the module."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)
