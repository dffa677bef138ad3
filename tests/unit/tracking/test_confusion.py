"""The confusion matrix of a report: counts are counts, or the part is missing with a reason."""

from __future__ import annotations

from typing import Any

import pytest

from finetune.tracking.report.confusion import confusion_cells
from finetune.tracking.report.parts import Parts
from finetune.tracking.report.tables import Table


@pytest.mark.parametrize("cell", [-39916799, "x", None, True, float("nan"), float("inf"), 1e300, 2**60])
def test_a_cell_that_is_no_count_takes_the_part_out_of_the_report(cell: Any) -> None:
    table = Table(4, ["reference", "a", "b"], [["a", 1, cell], ["b", 1, 1]])
    parts = Parts()
    assert parts.make("confusion matrix", lambda: confusion_cells(table), None) is None
    assert parts.missing == ["confusion matrix (ValueError: row 1 has a cell that is no count)"]


def test_counts_are_shaded() -> None:
    found = confusion_cells(Table(4, ["reference", "a", "b"], [["a", 3, 1], ["b", 0, 0]]))
    assert found is not None
    assert [[cell["share"] for cell in row["cells"]] for row in found["rows"]] == [[0.75, 0.25], [0.0, 0.0]]
