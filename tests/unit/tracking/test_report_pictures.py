"""Pictures in a report: each once, within the bytes of a page, and what is not shown is counted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.tracking.journal import Journal
from finetune.tracking.report.charts import Line, draw_chart
from finetune.tracking.report.confusion import MAX_CELLS, confusion_cells
from finetune.tracking.report.curves import MAX_METRICS, draw_charts
from finetune.tracking.report.pictures import Thumbnails
from finetune.tracking.report.samples import pair_samples
from finetune.tracking.report.tables import Table, with_pictures
from finetune.tracking.run import Run
from finetune.tracking.series import Series


def save(run: Run, folder: str, name: str, color: tuple[int, int, int]) -> str:
    """The name under which a table of the run has the picture."""
    path = run.predictions / "pictures" / folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), color).save(path)
    return f"/moved/predictions/pictures/{folder}/{name}"


def tell_samples(run: Run) -> None:
    columns = ["when", "id", "input", "expected", "predicted", "picture"]
    for step, (when, color) in enumerate((("before", (0, 0, 0)), ("after", (255, 0, 0)))):
        rows = [[when, 4, "row 4", "cat", "dog", save(run, when, "4.png", color)]]
        Journal(run).table("samples", step=step, columns=columns, rows=rows)


@pytest.mark.parametrize(
    ("task", "places"), [("image_classification", {"input"}), ("object_detection", {"before", "after"})]
)
def test_a_picture_into_which_nothing_is_drawn_is_shown_once(run: Run, task: str, places: set[str]) -> None:
    tell_samples(run)
    thumbnails = Thumbnails(run, task)
    [sample] = pair_samples(run, thumbnails)
    assert sample["pictures"].keys() == places and sample["missing"] == 0
    assert len(set(sample["pictures"].values())) == len(places)
    assert ("boxes" in thumbnails.legend) == (task == "object_detection")


def test_pictures_share_the_bytes_of_a_page_and_those_left_out_are_counted(run: Run) -> None:
    names = [save(run, "examples", f"{number}.png", (number, 90, 200)) for number in range(4)]
    one = len(Thumbnails(run, "").make(names[0]))
    table = Table(1, ["id", "loss", "picture"], [[number, 1.0, name] for number, name in enumerate([*names, ""])])
    found = with_pictures(table, Thumbnails(run, "", left=2 * one + one // 2))
    assert found is not None and found["columns"] == ["id", "loss"]
    assert [bool(picture) for picture in found["pictures"]] == [True, True, False, False, False]
    assert found["missing"] == 2, "the last row never had one"
    none = with_pictures(table, Thumbnails(run, "", left=0))
    assert none is not None and (none["pictures"], none["missing"]) == ([], 4)


@pytest.mark.parametrize("name", ["../../secret.png", "/etc/passwd", "pictures/../../x.png", None, 7, "pictures"])
def test_only_pictures_of_the_run_are_shown(run: Run, tmp_path: Path, name: object) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    assert Thumbnails(run, "").make(name) == ""


def test_a_class_has_one_color_with_a_diagonal_before_it_or_without() -> None:
    steps = np.array([0.0, 1.0])
    line, other, diagonal = (Series(steps, steps, steps * factor) for factor in (0.5, 0.7, 1.0))
    named = [Line("cat", line, exact=True), Line("dog", other, exact=True)]
    plain = draw_chart("ROC", [Line("chance", diagonal, plain=True), *named])
    assert plain.legend == draw_chart("Precision", named).legend
    assert [one["color"] for one in json.loads(plain.data)["lines"]] == [1, 1, 2]
    assert "var(--series-3)" not in plain.svg


def test_all_metrics_are_drawn_in_as_many_charts_as_they_need() -> None:
    steps = np.array([1.0, 2.0])
    names = [f"metric_{number}" for number in range(MAX_METRICS + 2)]
    curves = {("validation", name): Series(steps, steps, steps / 4) for name in names}
    charts = [chart for chart in draw_charts(curves, {}) if chart.title == "Metrics by epoch"]
    assert [label for chart in charts for label, _ in chart.drawing.legend] == names
    assert [chart.note for chart in charts] == ["validation, 1 of 2", "validation, 2 of 2"]


def test_cells_that_a_map_leaves_out_are_counted() -> None:
    names = [f"c{number}" for number in range(100)]
    full = [[name, *[2 if at == over else 1 for over in range(100)]] for at, name in enumerate(names)]
    found = confusion_cells(Table(1, ["reference", *names], full))
    assert found is not None and found["form"] == "map"
    assert len(found["cells"]) == MAX_CELLS and found["more"] == 10_000 - MAX_CELLS
    assert all(cell["right"] for cell in found["cells"][:100]), "the largest are drawn"
