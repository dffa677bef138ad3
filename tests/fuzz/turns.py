"""Equal shares of a given time for the fuzz tests: in turn, a few inputs of a new seed each, until the time is up.

A plugin of pytest, for `python -m tests.fuzz`. The test that has had the least time is next, so that each is reached in the
first round, and slow tests have fewer inputs rather than more time. A test with a finding has no further turns.
"""

from __future__ import annotations

import faulthandler
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hypothesis
import pytest

HANG_SECONDS = 60  # of one input: then the stacks are printed, and the process ends with exit code 1


@dataclass
class Share:
    """What one test has had: seconds, inputs, turns (each with a seed of its own), and findings."""

    item: pytest.Item
    seconds: float = 0.0
    inputs: int = 0
    turns: int = 0
    findings: int = 0


class Turns:
    """Takes the place of pytest's loop over tests. shares: one for each test, after `pytest.main` those that were tried."""

    def __init__(self, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.ends = clock() + seconds
        self.clock = clock
        self.shares: list[Share] = []
        self.broken = False  # a file could not be collected
        self._inputs = 0
        self._failed: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.shares = [Share(item) for item in session.items if _is_fuzz(item)]
        for function in {item.item.obj for item in self.shares}:  # type: ignore[attr-defined]
            self._count(function.hypothesis)
        while self.clock() < self.ends and (left := [share for share in self.shares if not share.findings]):
            self._turn(min(left, key=lambda share: share.seconds))
        for share in self.shares:
            print(line(share), flush=True)
        return True

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.broken = True
            print(report.longreprtext, flush=True)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed.append(f"{report.longreprtext}\n{''.join(text for _, text in report.sections)}")

    def _turn(self, share: Share) -> None:
        seed, began = random.SystemRandom().randrange(2**32), self.clock()
        self._inputs, self._failed = 0, []
        hypothesis.seed(seed)(share.item.obj)  # type: ignore[attr-defined]
        share.item.config.hook.pytest_runtest_protocol(item=share.item, nextitem=None)
        faulthandler.cancel_dump_traceback_later()
        share.turns += 1
        share.inputs += self._inputs
        share.seconds += self.clock() - began
        if self._failed:
            share.findings += 1
            print("\n".join(self._failed), f"\nrepeat with: {repeat(share.item, seed)}\n", flush=True)

    def _count(self, handle: Any) -> None:
        """Have every input counted, and its time bounded."""
        test = handle.inner_test

        def counted(*args: Any, **values: Any) -> Any:
            self._inputs += 1
            faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
            return test(*args, **values)

        handle.inner_test = counted


def _is_fuzz(item: pytest.Item) -> bool:
    return bool(getattr(getattr(item, "obj", None), "is_hypothesis_test", False))


def line(share: Share) -> str:
    """What one test has tried."""
    found = "FINDING" if share.findings else "no finding" if share.turns else "NOT REACHED"
    return f"{share.inputs:9,} inputs, {share.turns:5,} seeds, {share.seconds:6.1f} s, {found}: {share.item.nodeid}"


def repeat(item: pytest.Item, seed: int) -> str:
    """The command that tries the same inputs again."""
    inputs = os.environ["FINETUNE_FUZZ_INPUTS"]
    return f"FINETUNE_FUZZ_INPUTS={inputs} python -m pytest '{item.nodeid}' --hypothesis-seed={seed}"
