"""The report of a run with 3,000 classes has few elements and bytes: what a browser needs to draw it is counted, not timed."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from benchmarks.large_reports import add_predictions, add_steps, add_tables, begin
from finetune.app.report import report

CLASSES = 3000


class Elements(HTMLParser):
    def __init__(self, page: Path) -> None:
        super().__init__()
        self.count, self.text = 0, ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count += 1

    def handle_data(self, data: str) -> None:
        self.text += data


def test_three_thousand_classes(tmp_path: Path) -> None:
    run, journal = begin(tmp_path / "run", 20)
    add_steps(run, 20, 2)
    add_predictions(run, 20, 200, CLASSES, scores=False)
    add_tables(journal, 20, CLASSES)
    counts = {f"class number {index}": 5 for index in range(200)}
    run.update(facts={**run.read()["facts"], "class_balance": {"train": counts, "validation": counts}})
    journal.finished(status="done", summary={"best_step": 20, "best_metric": "accuracy", "steps": 20})
    page = report(run.path)
    elements = Elements(page)
    assert page.stat().st_size < 400_000 and elements.count < 4000
    assert "2900 more rows in tables/" in elements.text
    assert "class number 0" in elements.text and "Confusion matrix" in elements.text
