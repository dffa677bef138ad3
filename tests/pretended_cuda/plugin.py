"""pytest under --pretend-cuda: tests that a pretended device cannot pass must fail, for the reason given in cannot.py."""

from __future__ import annotations

import pytest

from tests.pretended_cuda.cannot import CANNOT, SELECTED


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Strictly: a test of the list that passes fails, so that it leaves the list."""
    for item in items:
        for entry in CANNOT:
            if entry.matches(item.nodeid):
                item.add_marker(pytest.mark.xfail(reason=entry.reason, strict=True, run=entry.runs))
        if any(name in item.nodeid for name in SELECTED):
            item.add_marker(pytest.mark.pretended)
