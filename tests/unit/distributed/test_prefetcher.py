"""Proves that the next step is fetched ahead, once, and that what goes wrong then is told when its turn comes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from finetune.distributed.prefetcher import Prefetcher
from finetune.errors import UserError


def made(log: list[str], count: int = 3, *, bad: int = -1, seconds: float = 0.0) -> Iterator[Any]:
    """Steps that write down when they are dealt; number `bad` cannot be."""
    for number in range(count):
        if number == bad:
            raise UserError("no such picture", where="row 7")
        time.sleep(seconds)
        log.append(f"fetched {number}")
        yield number


def test_a_step_is_fetched_while_the_one_before_is_trained() -> None:
    log: list[str] = []
    prefetcher = Prefetcher(made(log), torch.device("cpu"))
    for number in range(3):
        assert prefetcher.take() == number  # type: ignore[comparison-overlap]
        prefetcher.fetch()
        prefetcher.fetch()  # one is here already
        log.append(f"trained {number}")
    assert log == ["fetched 0", "fetched 1", "trained 0", "fetched 2", "trained 1", "trained 2"]
    with pytest.raises(StopIteration):
        prefetcher.take()


def test_a_row_that_cannot_be_read_ends_its_own_step_and_not_the_one_before() -> None:
    prefetcher = Prefetcher(made([], bad=1), torch.device("cpu"))
    prefetcher.take()
    prefetcher.fetch()
    with pytest.raises(UserError, match="no such picture"):
        prefetcher.take()


def test_seconds_without_data_are_counted_once() -> None:
    prefetcher = Prefetcher(made([], seconds=0.05), torch.device("cpu"))
    prefetcher.take()
    prefetcher.fetch()
    assert 0.1 <= prefetcher.waited() < 1.0
    assert prefetcher.waited() == 0.0
