"""Proves that the progress line of a prediction counts rows, and says how long it takes where that is known."""

import pytest

from finetune.app.workers.prediction_report import PredictionProgress, describe_resumed
from finetune.data.formats.lines import count_lines
from finetune.data.sources.source_stream import open_stream
from finetune.inference.prediction.parts import Parts
from finetune.inference.prediction.state import State
from finetune.recipe.data import SourceSection
from finetune.tasks.text_classification.card import CARD


def test_rate_and_time_left_are_those_of_this_start():
    progress = PredictionProgress(State(rows=1_000), 3_000)
    assert progress.describe(1_500, 0, 10.0) == ("answered: 1,500 of about 3,000 rows", 0.5)
    text, share = progress.describe(2_000, 3, 15.0)
    assert text == "answered: 2,000 of about 3,000 rows, 100 rows/s, 10s left, 3 errors" and share == 2 / 3


@pytest.mark.parametrize("total", [None, 10])
def test_a_total_that_is_not_known_or_wrong_is_not_shown(total):
    progress = PredictionProgress(State(), total)
    progress.describe(20, 0, 0.0)
    assert progress.describe(30, 0, 4.0)[0] == "answered: 30 rows, 2.5 rows/s"


def test_estimates(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' * 3 + '{"text": "b"}')
    (tmp_path / "b.csv").write_text("text\na\nb\n")
    (tmp_path / "c.txt").write_text("a\nb\n")
    assert [count_lines(tmp_path / name) for name in ("a.jsonl", "b.csv", "c.txt", "none")] == [4, 3, 2, None]
    sources = [SourceSection(source=str(tmp_path / name)) for name in ("a.jsonl", "b.csv")]
    assert open_stream(sources, CARD).estimate() == 6
    assert open_stream([SourceSection(source=str(tmp_path / "a.jsonl"), limit=2)], CARD).estimate() == 2
    (tmp_path / "d.json").write_text('[{"text": "a"}]')
    assert open_stream([*sources, SourceSection(source=str(tmp_path / "d.json"))], CARD).estimate() is None


def test_a_resumed_prediction_counts_what_is_answered_and_not_written(tmp_path):
    parts = Parts(tmp_path / "out.jsonl")
    assert parts.count_answered() == 0
    for name, rows in (((2, 0), (20, 21)), ((2, 3), (22,)), ((3, 0), (31, 31, 32))):
        parts.window(name[0]).mkdir(parents=True, exist_ok=True)
        lines = ['{"digest": "row"}', *(f'{{"row": {row}, "record": {{"row": {row}}}}}' for row in rows)]
        parts.answers(name).write_text("\n".join(lines) + "\n")
    assert parts.count_answered() == 5  # row 31 has two parts
    assert describe_resumed(20, 5) == "resuming after 20 rows; 5 more answered, and not in the output yet"
    assert describe_resumed(0, 1) == "resuming: 1 row answered, and none in the output yet"
    assert describe_resumed(1, 0) == "resuming after 1 row"
