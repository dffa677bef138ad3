"""Proves what the reports show: brackets and widths in a terminal, escaped text in the page, and the same values as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.cells import cell_len

from finetune.errors import UserError
from finetune.inspection.page import draw_bars, render_page
from finetune.inspection.report import InspectionReport
from finetune.inspection.statistics import histogram
from finetune.inspection.terminal_lines import ASCII, Style
from finetune.inspection.terminal_report import render
from finetune.tasks import CARDS
from tests.unit.inspection.inspected import Data, sentence

MakeData = Callable[..., Data]
NASTY = (
    "</script><img src=x onerror=alert(1)> \x1b[2J\x1b]0;title\x07 \u202egnp.exe \u2028 \ud83d {{ 7 * 7 }} {% raw %}"
)


def lines(report: InspectionReport, width: int = 100, **options: object) -> list[str]:
    return "\n".join(render(report, Style(width, **options), whole_rows=True)).split("\n")


def shown(report: InspectionReport, **options: object) -> str:
    """The report from its rows on."""
    return "\n".join(lines(report, **options)).partition("\nRows\n")[2]


@pytest.mark.parametrize("task", sorted(CARDS))
@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_wider_than_the_terminal(data: MakeData, task: str, width: int) -> None:
    report = data(task).report()
    too_wide = [line for line in lines(report, width) if cell_len(line) > width]
    assert too_wide == []
    assert len(lines(report, width)) > 20


def test_learned_tokens_can_be_read_without_color(data: MakeData) -> None:
    found = data("causal_lm")
    found.train[0]["messages"] = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes."}]
    text = shown(found.report(count=0, row=0))
    assert re.search(r"^  assistant +‹<\|im_start\|>│[^›]*⏎›⟦[^⟦⟧]*‹<\|im_end\|>›⟧‹⏎›$", text, re.M)
    (inside,) = re.findall(r"⟦(.*)⟧", text.partition("── train row")[2])
    assert inside.replace("│", "") == "Yes.‹<|im_end|>›"
    assert "\x1b" not in text


def test_color_adds_escape_codes_and_nothing_else(data: MakeData) -> None:
    report = data("causal_lm").report()
    plain, colored = lines(report), lines(report, color=True)
    assert any("\x1b[1;32m" in line for line in colored)
    assert [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in colored] == plain


def test_plain_marks_are_ascii(data: MakeData) -> None:
    text = shown(data("causal_lm").report(), **ASCII)
    assert "[[" in text
    text.replace("·", "").encode("ascii")


def test_nothing_in_a_text_acts_on_terminal_or_page(data: MakeData) -> None:
    found = data("causal_lm")
    for message in found.train[0]["messages"]:
        message["content"] = NASTY.replace("\ud83d", "")
    report = found.report()
    text = "\n".join(lines(report))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028]", text)
    assert "\\x1b" in text
    page = render_page(report)
    assert "<script" not in page.lower()
    assert "<img src=x" not in page
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028]", page)
    assert "49" not in re.sub(r"[^{}]*", "", page)


def test_the_page_needs_no_network_and_no_script(data: MakeData) -> None:
    for task in ("causal_lm", "object_detection"):
        page = render_page(data(task).report())
        assert "default-src 'none'" in page
        assert re.findall(r"(?:src|href)=\"(?!data:)", page) == []
        assert "http" not in page.replace("http-equiv", "")
        assert "<script" not in page


def test_pictures_are_in_the_page_with_their_boxes(data: MakeData) -> None:
    report = data("object_detection", augment="crop_flip").report()
    page, text = render_page(report), shown(report)
    assert page.count("data:image/png;base64,") == len(report.rows) == 2
    for row in report.rows:
        assert row.picture is not None
        assert (row.picture.width, row.picture.height) == (64, 64)
        assert len(row.picture.boxes) + row.picture.left_out == 1
        for box in row.picture.boxes:
            left, top, right, bottom = box.corners
            assert 0 <= left < right <= 64.01
            assert 0 <= top < bottom <= 64.01
            assert f"{box.label} [{left:.1f}, {top:.1f}, {right:.1f}, {bottom:.1f}]" in text
    assert "augmented (crop_flip)" in text


def test_what_was_cut_is_shown(data: MakeData) -> None:
    found = data("causal_lm")
    reply = sentence(9, 60)
    found.train[7]["messages"][1]["content"] = reply
    report = found.report(row=7)
    (sequence,) = report.rows[0].sequences
    assert sequence.length == 120
    assert sequence.cut_tokens > 10
    kept = "".join(token.text for token in sequence.tokens if token.learned)
    assert reply.startswith(kept)
    assert (kept + sequence.cut_text).startswith(reply)
    assert f"{sequence.cut_tokens} tokens:" in shown(report)


def test_a_row_that_is_not_used_says_why(data: MakeData) -> None:
    found = data("causal_lm")
    found.train[7] = {"instruction": "Say nothing.", "output": ""}
    report = found.report(row=7)
    assert report.rows[0].problem
    assert f"not used: {report.rows[0].problem}" in shown(report)
    assert report.rows[0].problem in render_page(report)


def test_a_row_that_is_not_there(data: MakeData) -> None:
    with pytest.raises(UserError, match="train has no row 30"):
        data("causal_lm").report(row=30)


def test_rows_of_each_kind_are_shown_once(data: MakeData) -> None:
    found = data("causal_lm")
    report = found.report(count=3)
    assert [row.why for row in report.rows] == ["first"] * 3 + ["random"] * 3 + ["longest"] * 3
    assert len({row.id for row in report.rows}) == 9
    assert [row.id for row in report.rows] == [row.id for row in found.report(count=3).rows]
    lengths = [sum(one.length for one in row.sequences) for row in report.rows[6:]]
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize("task", sorted(CARDS))
def test_the_report_is_json(data: MakeData, task: str) -> None:
    found = data(task)
    found.validation[2] = found.train[5]
    values = json.loads(json.dumps(found.report().to_dict()))
    (leak,) = [one for one in values["findings"] if one["kind"] == "leak"]
    assert [(row["split"], row["id"]) for row in leak["rows"]] == [("validation", 2)]
    assert values["rows"]


def test_the_parts_of_a_split_row_are_shown(data: MakeData) -> None:
    """on_long: split: nothing is cut, and both parts are the row's."""
    found = data("causal_lm", on_long="split")
    found.train[7]["messages"][1]["content"] = sentence(9, 60)
    report = found.report(row=7)
    assert len(report.rows) >= 2
    assert {row.id for row in report.rows} == {7}
    assert not [one for one in report.findings if one.kind == "reply-cut"]


def test_packs_are_shown_with_their_borders(data: MakeData) -> None:
    found = data("causal_lm", max_length=100)
    inspection = found.inspection()
    report = found.report()
    assert report.padding is not None
    assert report.padding.packing == inspection.plan.training.packing == "padding_free"
    first = report.padding.first[0]
    assert first.borders[0] == 0
    assert [end - start for start, end in zip(first.borders, first.borders[1:], strict=False)] == [
        length for _, length in first.rows
    ]
    assert report.padding.share == 0


def test_padding_is_that_of_the_collated_batches(data: MakeData) -> None:
    report = data("seq2seq").report()
    padding = report.padding
    assert padding is not None
    assert padding.steps == padding.of_steps == 4
    rows = [length for micro in padding.first for _, length in micro.rows]
    used = sum(micro.positions - micro.padding for micro in padding.first)
    assert used == sum(rows)
    assert 0 < padding.share < 0.5


def test_histograms_hold_every_value() -> None:
    import numpy as np

    for values in (np.arange(1000) ** 2 % 977, np.array([7]), np.array([0, 0, 1]), np.array([5, 1_000_000])):
        drawn = histogram(values, "tokens")
        assert drawn is not None
        assert sum(drawn.counts) == len(values)
        assert drawn.edges[0] <= values.min()
        assert drawn.edges[-1] > values.max()
        assert len(drawn.counts) <= 13
        assert len(draw_bars(drawn)) == len(drawn.counts)
    floats = histogram(np.array([0.5, 0.5, 1.25]), "label")
    assert floats is not None
    assert sum(floats.counts) == 3
    assert histogram(np.zeros(0), "tokens") is None


def test_a_page_without_rows_of_a_kind(data: MakeData) -> None:
    report = data("text_classification").report(count=0)
    assert report.rows == ()
    assert "Findings" in render_page(replace(report, padding=None, labels=None, scripts=None, histograms=()))


def test_what_was_sampled_is_reported_even_if_nothing_was_found(
    data: MakeData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.inspection.split.MAX_SIMILAR", 10)
    report = data("causal_lm").report()
    assert report.findings == ()
    assert "near duplicates: looked at 10 of 30 rows of train" in report.notes
    assert "note: near duplicates: looked at 10 of 12 rows of validation" in lines(report)


def test_several_labels_per_text_are_counted_each(data: MakeData) -> None:
    found = data("text_classification", problem="multi_label")
    kinds = [["anger"], ["joy", "anger"], ["joy"], []]
    for split in (found.train, found.validation):
        for index, row in enumerate(split):
            row["label"] = kinds[index % 4]
    report = found.report(row=1)
    assert report.findings == ()
    assert report.labels is not None
    assert {row[0]: row[1] for row in report.labels.rows} == {
        "anger": "16 (53.3%)",
        "joy": "15 (50.0%)",
        "(no label)": "7 (23.3%)",
    }
    assert sorted(report.rows[0].labels) == ["anger", "joy"]


def test_single_replies_with_a_verdict(data: MakeData) -> None:
    found = data("preference", loss="kto")
    for split in (found.train, found.validation):
        for index, row in enumerate(split):
            row.update(completion=row.pop("chosen"), label=index % 2 == 0)
            del row["rejected"]
    report = found.report()
    assert report.findings == ()
    assert report.labels is not None
    assert {row[0] for row in report.labels.rows} == {"desirable", "undesirable"}
    assert report.compared == report.matching > 0


def test_numbers_are_shown_and_drawn(data: MakeData) -> None:
    report = data("sequence_regression").report(row=7)
    assert report.rows[0].labels == ("1",)
    assert "Labels, train" in dict(report.histograms)


def test_labels_of_several_classes_are_counted_by_rows(data: MakeData) -> None:
    found = data("text_classification", problem="multi_label")
    for rows in (found.train, found.validation):
        for index, row in enumerate(rows):
            row["label"] = (["good", "bad"], ["good"], [])[index % 3]
    report = found.report(count=3)
    assert report.labels is not None
    assert report.labels.head == ("label (% of rows)", "train", "validation")
    assert report.labels.rows == (
        ("good", "20 (66.7%)", "8 (66.7%)"),
        ("bad", "10 (33.3%)", "4 (33.3%)"),
        ("(no label)", "10 (33.3%)", "4 (33.3%)"),
    )
    assert {row.labels for row in report.rows if row.id in (1, 2)} == {("good",), ("(no label)",)}
