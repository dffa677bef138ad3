"""A cache of its own for each test, and clean data of any task."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.unit.inspection.inspected import Data, clean


@pytest.fixture
def data(tmp_path: Path) -> Callable[..., Data]:
    """data(task, **options) -> clean rows of a task."""
    return partial(clean, tmp_path)


@pytest.fixture(autouse=True)
def _own_cache(own_cache: Path) -> None:
    """Every test of this folder has it."""
