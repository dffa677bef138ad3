"""Proves that the estimate of a step counts what operators read, write and compute, and that layers which are not traced are as
those that are.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from benchmarks.gpu import roofline
from benchmarks.gpu.make import SHAPES, parameters
from benchmarks.gpu.operator_costs import H100, Costs, Device, Line, Total, kernel
from benchmarks.gpu.roofline import SIDES, Row, Side, estimate, trace

ROW = Row("tiny", Side(2, 3), Side(2, 3), length=64)


def costs_of(run: Any) -> Line:
    with Costs() as costs:
        run()
    total = Total(H100)
    total.add(costs)
    return total.sum()[0]


def test_bytes_flops_and_launches_of_operators() -> None:
    a, b, c = torch.ones(8, 16), torch.ones(16, 32), torch.ones(8, 32)
    product = 2 * 8 * 16 * 32
    read = 4 * (8 * 16 + 16 * 32)
    result = 4 * 8 * 32
    cases = {
        "product": (lambda: a @ b, 1, read + result, product),
        "into a tensor": (lambda: torch.mm(a, b, out=c), 1, read + result, product),
        "added in place": (lambda: c.addmm_(a, b), 1, read + 2 * result, product),
        "over what was there": (lambda: c.addmm_(a, b, beta=0), 1, read + result, product),
        "sum in place": (lambda: c.add_(c), 1, 3 * result, 0),
        "filled": (lambda: c.zero_(), 1, result, 0),
        "expanded": (lambda: torch.add(c, c[0].expand(8, 32)), 1, 2 * result + 4 * 32, 0),
        "views": (lambda: c.view(-1).unflatten(0, (8, 32)).T, 0, 0, 0),
        "rows": (lambda: b.index_select(0, torch.tensor([3, 5])), 1, 2 * (2 * 4 * 32) + 2 * 8, 0),
        "kernel": (lambda: kernel("mine", reads=[a], writes=[a, a], flops=7), 1, 3 * 4 * 8 * 16, 7),
    }
    for name, (run, *expected) in cases.items():
        found = costs_of(run)
        assert [found.launches, found.bytes, found.flops] == expected, name


def test_time_is_what_binds_each_operator() -> None:
    device = Device(bandwidth=10.0, product_flops=100.0, attention_flops=50.0, launch=1.0)
    assert device.seconds(Line("mm", 1, 30, 100)) == 3.0
    assert device.seconds(Line("mm", 1, 30, 500)) == 5.0
    assert device.seconds(Line("attention", 1, 30, 500)) == 10.0
    assert device.seconds(Line("add", 4, 30, 0)) == 4.0


def test_flops_of_a_step_are_those_of_the_model() -> None:
    """Full fine-tuning: three products for each matrix, and attention, whose backward pass has five for two."""
    hidden, _, layers, heads, _, _, vocabulary = SHAPES["tiny"]
    norms = (2 * layers + 1) * hidden
    layer_weights = parameters("tiny") - vocabulary * hidden - norms
    tokens, supervised = 3 * 2 * 64, 3 * 2 * 63
    attention = layers * 3 * 2 * heads * 4 * 64 * 64 * (hidden // heads) // 2
    wanted = 6 * layer_weights * tokens + 6 * vocabulary * hidden * supervised + attention * 7 // 2
    found, seconds = estimate(ROW, "ours").sum()
    assert found.flops == wanted
    assert seconds > wanted / H100.product_flops


@pytest.mark.parametrize("side", SIDES[:2])
def test_layers_that_are_not_traced_are_as_the_second_one(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, inner, _, *rest = SHAPES["tiny"]
    monkeypatch.setitem(SHAPES, "tiny", (hidden, inner, 4, *rest))
    whole = Total(H100)
    for name, costs in trace(ROW, side, 4).items():
        whole.add(costs, 2 if name == "later" else 1)
    found = estimate(ROW, side)
    assert found.lines == whole.lines and found.waits == whole.waits
    assert found.peak == pytest.approx(whole.peak, rel=0.02)


def test_the_update_of_masters_is_one_pass_and_the_norm() -> None:
    """Gradients are read twice; masters and two moments are read and written, bf16 weights are written."""
    row = Row("tiny", Side(2, 3, masters=True), ROW.peer, length=64)
    found = Total(H100)
    found.add(trace(row, "ours", SHAPES["tiny"][2])["update"])
    assert found.lines["update"].bytes == pytest.approx(28 * parameters("tiny"), rel=1e-3)
    assert found.sum()[0].bytes == pytest.approx(30 * parameters("tiny"), rel=1e-2)


def test_a_step_of_ours_waits_for_nothing_and_its_peer_does() -> None:
    assert estimate(ROW, "ours").waits.total() == 0
    assert estimate(ROW, SIDES[1]).waits.total() == 3 * 6


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable")
def test_every_row_is_printed_with_both_sides(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = {name: Row("tiny", row.ours, row.peer, row.adapter, 64) for name, row in roofline.ROWS.items()}
    monkeypatch.setattr(roofline, "ROWS", tiny)
    monkeypatch.setattr(sys, "argv", ["roofline", "--top", "3"])
    roofline.main()
    shown = capsys.readouterr().out
    assert len(tiny) == 4 and "not run" in shown.splitlines()[0]
    for name in tiny:
        assert f"\n{name}: tiny" in shown
    assert all(shown.count(f"\n| {side} | ") == 4 for side in SIDES)
