"""Proves which capacity follows from which figures: made up, so no clock decides."""

import math

import pytest

from finetune.planning.capacity import PASSES, SECONDS, Measured, choose_capacity


def measure(rates, *, filled=lambda capacity: 0.0, full_at=10**9, whole_at=10**9, seconds=None):
    """A device: tokens per second by capacity; what was asked for is kept in `asked`."""
    asked = []

    def one(capacity):
        asked.append(capacity)
        fits = capacity < full_at
        took = capacity / rates[capacity] if fits else math.inf
        elapsed = sum(seconds[size] for size in asked) * PASSES if seconds else 0.0
        return Measured(
            capacity,
            capacity,
            seconds[capacity] if seconds else took,
            filled(capacity) if fits else math.inf,
            capacity >= whole_at,
            elapsed,
        )

    one.asked = asked
    return one


GROWING = {512: 1_000, 1024: 1_900, 2048: 3_500, 4096: 6_000, 8192: 6_100, 16384: 7_000}


@pytest.mark.parametrize(
    ("device", "first", "limit", "chosen", "asked", "reason"),
    [
        (measure(GROWING), 512, 16384, 4096, [512, 1024, 2048, 4096, 8192], "no faster"),
        (measure(GROWING), 512, 3000, 2048, [512, 1024, 2048], "at most 3,000 are tried"),
        (measure(GROWING, whole_at=1024), 512, 16384, 1024, [512, 1024], "a step has no more for a rank"),
        (measure(GROWING, full_at=2048), 512, 16384, 1024, [512, 1024, 2048], "memory"),
        (measure(GROWING, full_at=3000), 4096, 16384, 2048, [4096, 2048], "memory"),
        (measure(GROWING, filled=lambda size: size / 3000), 512, 16384, 2048, [512, 1024, 2048], "memory, by forecast"),
        # 0.4 is taken whatever the size: the line through two sizes says so, twice the only one does not know it
        (measure(GROWING, filled=lambda size: 0.4 + size / 9000), 512, 16384, 4096, None, "memory, by forecast"),
        (measure(GROWING, filled=lambda size: 0.7 + size / 9000), 512, 16384, 512, [512], "memory, by forecast"),
        (measure(GROWING, filled=lambda size: size / 3000), 4096, 16384, 2048, [4096, 2048], "memory"),
    ],
)
def test_the_smallest_of_those_that_fit_and_gain(device, first, limit, chosen, asked, reason):
    choice = choose_capacity(device, first=first, least=300, limit=limit)
    assert (choice.capacity, choice.reason) == (chosen, reason)
    assert asked is None or device.asked == asked


def test_no_smaller_than_the_longest_example():
    device = measure(GROWING, full_at=100)
    assert choose_capacity(device, first=4096, least=1500, limit=16384).capacity == 2048
    assert device.asked == [4096, 2048]


def test_slow_passes_end_the_measuring():
    """Each size takes three passes; the next one would take twice as long."""
    seconds = {512: 0.2, 1024: 0.3, 2048: 0.5, 4096: 0.9, 8192: 1.7, 16384: 3.0}
    device = measure(GROWING, seconds=seconds)
    choice = choose_capacity(device, first=512, least=300, limit=16384)
    assert choice.capacity == 4096 and "10 s" in choice.reason
    assert sum(seconds[size] for size in device.asked) * PASSES <= SECONDS


def test_the_words_say_what_was_measured():
    words = choose_capacity(measure(GROWING, full_at=2048), first=512, least=300, limit=16384).in_words()
    assert "micro-batches of 1,024 tokens" in words
    assert "1,000 with 512; 1,900 with 1,024; out of memory with 2,048" in words and "not larger: memory" in words
