"""What the contract tests of tasks share: every tiny example in turn, and a cache of its own for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.examples import EXAMPLE_PARAMS, TinyExample


@pytest.fixture(params=EXAMPLE_PARAMS)
def example(request: pytest.FixtureRequest) -> TinyExample:
    """One tiny example of every task (of preference tuning, one for each loss)."""
    return request.param


@pytest.fixture(autouse=True)
def _own_cache(own_cache: Path) -> None:
    """Every test of this folder has it."""
