"""The curve in characters, and which figures stay where a terminal is narrow."""

from io import StringIO

import pytest
from rich.console import Console as Terminal

from finetune.terminal import VIEW_LINES
from finetune.tracking.console import Console
from finetune.tracking.live_view import MAX_POINTS, Curve, curve_lines, draw_curve, fit_parts

FIGURES = {
    "loss": 1.2345, "learning_rate": 5e-5, "units_per_second": 12_345.0, "padding_share": 0.13, "memory_bytes": 2**30,
}  # fmt: skip


def dots(lines):
    """(column, row) of each dot, from the upper left corner; by Unicode's own numbering of braille dots."""
    places = {1: (0, 0), 2: (0, 1), 3: (0, 2), 4: (1, 0), 5: (1, 1), 6: (1, 2), 7: (0, 3), 8: (1, 3)}
    found = set()
    for line, text in enumerate(lines):
        for cell, letter in enumerate(text):
            bits = ord(letter) - 0x2800
            for number, (column, row) in places.items():
                if bits >> (number - 1) & 1:
                    found.add((cell * 2 + column, line * 4 + row))
    return found


def test_a_falling_line_is_a_diagonal_from_the_upper_left():
    assert dots(draw_curve([8, 7, 6, 5, 4, 3, 2, 1], width=4, height=2)) == {(at, at) for at in range(8)}


def test_a_jump_is_a_vertical_line_and_constant_values_are_a_level_one():
    assert dots(draw_curve([1, 0], width=1, height=1)) == {(0, 0), (1, 1), (1, 2), (1, 3)}
    assert {row for _, row in dots(draw_curve([3.0] * 5, width=4, height=2))} == {4}


def test_more_values_than_columns_are_averaged():
    values = [0, 2] * 20 + [10, 12] * 20  # means 1 and 11
    assert dots(draw_curve(values, width=1, height=1)) == {(0, 3), (1, 2), (1, 1), (1, 0)}


def test_a_curve_of_a_million_steps_keeps_its_mean_in_bounded_memory():
    curve = Curve()
    for step in range(100_000):
        curve.add(float(step))
    assert MAX_POINTS / 2 <= len(curve.points) < MAX_POINTS
    used = len(curve.points) * curve.stride
    assert sum(curve.points) / len(curve.points) == pytest.approx((used - 1) / 2)


def test_the_least_important_part_goes_first_and_one_stays():
    parts = [(2, "epoch 1"), (0, "loss 0.5"), (1, "3m left")]
    assert fit_parts(parts, 100) == "epoch 1 · loss 0.5 · 3m left"
    assert fit_parts(parts, 20) == "loss 0.5 · 3m left"
    assert fit_parts(parts, 3) == "loss 0.5"


def shown(width, height=30):
    """The view after a few steps of slow training, as lines."""
    terminal = Terminal(file=StringIO(), width=width, height=height, color_system=None, force_terminal=True)
    console = Console(terminal)
    console._total, console._step_seconds, console._unit = 150_000, 3.7, "token"
    console._evaluation = "validation after epoch 1 (step 75000): loss 0.4000 · accuracy 0.8612"
    for loss in (2.5, 2.0, 1.5):
        console._loss.add(loss)
    view = console._view(120_000, 1.6, FIGURES)
    with terminal.capture() as capture:
        terminal.print(view)
    return capture.get().splitlines()


@pytest.mark.parametrize("width", [80, 100, 200])
def test_loss_time_left_and_memory_stay_at_80_columns(width):
    line = shown(width)[0]
    for part in ("120000/150000", "loss 1.2345", " left", "1.0 GiB"):
        assert part in line, line
    assert ("padding 13%" in line and "lr 5.00e-05" in line) == (width == 200)


def test_the_view_has_curve_and_last_evaluation_where_there_is_space():
    lines = shown(80)
    assert len(lines) == VIEW_LINES
    assert "2.5000" in lines[1] and "1.5000" in lines[-2] and "accuracy 0.8612" in lines[-1]
    assert len(shown(80, height=10)) == 1, "a low terminal has the line alone"
    assert len(shown(16)) == 1


def test_a_terminal_without_braille_has_no_curve():
    out = type("Ascii", (StringIO,), {"encoding": "ascii"})()
    terminal = Terminal(file=out, width=80, height=30, force_terminal=True)
    assert curve_lines(terminal, [1.0, 2.0], ("2", "1"), "loss") == []
