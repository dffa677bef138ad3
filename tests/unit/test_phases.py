"""Proves that a phase of the start is named once it takes long, and that what is quick is silent."""

import time

import pytest

from finetune.terminal import phase


def test_what_is_quick_is_silent() -> None:
    said: list[str] = []
    with phase("loading the model", said.append, after=0.05):
        pass
    time.sleep(0.1)
    assert said == []


def test_what_takes_long_is_told_while_it_lasts() -> None:
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
