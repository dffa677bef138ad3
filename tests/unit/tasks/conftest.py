"""Tests of tasks prepare data: each into a cache of its own."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _own_cache(own_cache: Path) -> None:
    """Every test of this folder has it."""
