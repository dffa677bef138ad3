"""Tests of the pretended device itself: under --pretend-cuda only, which changes torch in this process."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "pretended_cuda/" in item.nodeid:
            item.add_marker(pytest.mark.pretended)
            if not config.option.pretend_cuda:
                item.add_marker(pytest.mark.skip(reason="of the pretended device: pytest --pretend-cuda"))
