"""The parts of a report on data and cost: lengths, classes, data that changed, energy, the share of the peak."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from finetune.app.workers.distributions import MAX_CLASSES, length_histograms
from finetune.app.workers.distributions import class_balance as counted_classes
from finetune.tracking.report.costs import costs
from finetune.tracking.report.data import class_balance, data_changes, draw_lengths
from finetune.tracking.series import Series


class Split:
    """Examples of which only the costs are asked."""

    def __init__(self, costs: list[int]) -> None:
        self.costs = costs

    def __len__(self) -> int:
        return len(self.costs)


def series(*values: float, steps: tuple[float, ...] = ()) -> Series:
    at = np.asarray(steps or range(1, len(values) + 1), np.float64)
    return Series(at, at, np.asarray(values, np.float64))


def test_every_example_is_in_one_bin_of_its_length() -> None:
    splits: Any = {"train": Split([*range(3, 200), 7]), "validation": Split([3, 3, 199])}
    found = length_histograms(splits)
    edges = found["edges"]
    assert edges[0] == 3 and edges[-1] == 200 and edges == sorted(set(edges)) and len(edges) <= 25
    assert sum(found["counts"]["train"]) == 198 and sum(found["counts"]["validation"]) == 3
    assert found["counts"]["validation"][0] == 2 and found["counts"]["validation"][-1] == 1
    assert length_histograms({"train": Split([64] * 9)}) == {} == length_histograms({})  # images of one size


def test_lengths_are_drawn_for_each_split() -> None:
    facts = {"facts": {"lengths": {"edges": [1, 3, 5], "counts": {"train": [1, 3], "validation": [2, 0]}}}}
    chart = draw_lengths(facts)
    assert chart is not None and [label for label, _ in chart.drawing.legend] == ["train", "validation"]
    assert '"points":[[1.5,0.25],[3.5,0.75]]' in chart.drawing.data
    assert draw_lengths({}) is None and draw_lengths({"facts": {"lengths": {"edges": "?"}}}) is None


def test_classes_are_shown_by_frequency_with_what_is_left_out() -> None:
    facts = {"train classes": {"no": 90, "yes": 10}, "validation classes": {"no": 5, "yes": 5}, "test": "5 rows"}
    splits: Any = dict.fromkeys(("train", "validation", "test"))
    balance = class_balance({"facts": {"class_balance": counted_classes(facts, splits)}})
    assert balance is not None and balance.splits == ("train", "validation")
    assert balance.rows == (("no", ((90, 0.9), (5, 0.5))), ("yes", ((10, 0.1), (5, 0.5))))
    assert balance.note == "2 classes; the largest has 9 times as many as the smallest"
    many = {"train classes": {f"c{index}": 3000 - index for index in range(3000)}}
    stored = counted_classes(many, splits)
    assert stored["classes"] == 3000 and len(stored["counts"]["train"]) == MAX_CLASSES
    shown = class_balance({"facts": {"class_balance": stored}})
    assert shown is not None and len(shown.rows) < 25 and shown.note.startswith("3,000 classes; the 14 largest")
    assert class_balance({"facts": {}}) is None and counted_classes({}, splits) == {}


def test_a_resume_on_other_data_is_said() -> None:
    facts = {"data_changes": [{"step": 1200, "changes": ["train: a.csv had 48 rows, and now has 50"]}]}
    assert data_changes(facts) == [
        "resumed at step 1,200 on other data than before (--data-changed): train: a.csv had 48 rows, and now has 50"
    ]
    assert data_changes({}) == []


FACTS = {
    "task": "causal_lm",
    "machine": {"gpus": ["NVIDIA H100 80GB HBM3"] * 2},
    "facts": {
        "device": "cuda",
        "ranks": 2,
        "unit": "token",
        "precision": "bf16",
        "parameters": 8e9,
        "trainable_parameters": 8e9,
    },
}


def test_the_share_of_the_peak_and_the_energy_of_all_sessions() -> None:
    curves = {
        ("train", "positions_per_second"): series(20_000.0),
        ("train", "energy_joules"): series(0.0, 5e5, 1e6, 0.0, 8e5, steps=(1, 10, 20, 21, 30)),
        ("train", "memory_bytes"): series(2.0**30, 2.0**31),
        ("train", "memory_bytes_rank_1"): series(3 * 2.0**30),
    }
    found = dict(costs(FACTS, curves, 3600.0))
    assert found["GPU hours"].startswith("2.00")
    mfu = 6 * 8e9 * 20_000 / 2 / 989e12
    assert found["share of the GPUs' peak (MFU)"].startswith(f"{mfu:.1%} of 989 TFLOP/s")
    assert found["energy of the GPUs"] == "0.50 kWh on the machine of rank 0, 60,000 J per step"
    assert found["memory of rank 0"].startswith("2.00 GiB") and found["memory of rank 1"].startswith("3.00 GiB")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device": "cpu"}, "no GPU"),
        ({"precision": "fp32"}, "no peak is known"),
    ],
)
def test_what_was_not_measured_says_so(changes: dict[str, str], reason: str) -> None:
    facts = {**FACTS, "facts": {**FACTS["facts"], **changes}}  # type: ignore[dict-item]
    found = dict(costs(facts, {("train", "positions_per_second"): series(1.0)}, None))
    assert found["share of the GPUs' peak (MFU)"].startswith(f"not measured: {reason}")
    assert found["energy of the GPUs"].startswith("not measured")
