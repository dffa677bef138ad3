"""Proves that a phase of the start is named once it takes long, and that what is quick is silent."""

import threading
import time

import pytest

from finetune.terminal import phase, phases, phases_told


def test_what_is_quick_is_silent() -> None:
    said: list[str] = []
    with phase("loading the model", said.append, after=0.05):
        pass
    time.sleep(0.1)
    assert said == []


def test_what_takes_long_is_reported_while_it_lasts() -> None:
    said: list[str] = []
    with phase("loading the model", said.append, after=0.02):
        end = time.monotonic() + 5
        while not said and time.monotonic() < end:
            time.sleep(0.01)
        assert said == ["loading the model"]
    assert said == ["loading the model"]


def test_an_error_ends_it() -> None:
    said: list[str] = []
    with pytest.raises(ZeroDivisionError), phase("loading the model", said.append, after=0.05):
        raise ZeroDivisionError
    time.sleep(0.1)
    assert said == []


def test_what_took_long_is_listed_with_its_seconds(monkeypatch) -> None:
    monkeypatch.setattr(phases, "_PHASES", [])
    monkeypatch.setattr(phases, "LEAST_SECONDS", 0.05)
    now = [100.0]
    monkeypatch.setattr(phases.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(phases, "_BEGAN", 99.5)
    with phase("planning"):
        now[0] += 1.0
        with phase("importing a library"):
            now[0] += 2.0
    with phase("connecting the ranks"):
        pass
    with pytest.raises(ZeroDivisionError), phase("loading the model"):
        now[0] += 0.5
        raise ZeroDivisionError
    now[0] += 0.25
    listed = "importing a library 2.0 s, planning 1.0 s, loading the model 0.5 s, other 0.8 s"
    assert phases_told() == f"4.2 s ({listed})"
    monkeypatch.setattr(phases, "LEAST_SECONDS", 1e9)
    assert phases_told() == "4.2 s"


def test_it_leaves_no_thread_that_a_fork_would_miss() -> None:
    before = threading.active_count()
    with phase("loading the model"):
        pass
    assert threading.active_count() == before
