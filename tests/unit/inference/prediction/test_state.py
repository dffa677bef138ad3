"""What the state of an output says about rows without an answer."""

from pathlib import Path

import pytest

from finetune.errors import UserError
from finetune.inference.prediction.state import State


def test_kinds_of_errors_have_their_first_row(tmp_path: Path) -> None:
    state = State(errors={"bad_row": 5, "empty": 1}, first_errors={"bad_row": 2, "empty": 1700})
    state.save(tmp_path / "state.json")
    assert State.read(tmp_path / "state.json").failed_kinds == "5 bad_row (first: row 2), 1 empty (row 1,700)"
    assert State(errors={"empty": 3}).failed_kinds == "3 empty"  # of a state written before first rows were kept


def test_reasons_are_texts(tmp_path: Path) -> None:
    state = State(errors={"empty": 1}, first_errors={"empty": 7}, first_reasons={"empty": "the prompt is empty"})
    state.save(tmp_path / "state.json")
    assert State.read(tmp_path / "state.json") == state
    State(first_reasons={"empty": 7}).save(tmp_path / "state.json")  # type: ignore[dict-item]
    with pytest.raises(UserError, match="first_reasons holds no texts"):
        State.read(tmp_path / "state.json")


def test_answers_that_hold_nothing_are_counted_with_their_first_row(tmp_path: Path) -> None:
    state = State(nothing={"boxes": 1300, "text": 1}, first_nothing={"boxes": 2, "text": 1700})
    state.save(tmp_path / "state.json")
    assert State.read(tmp_path / "state.json").describe_nothing(0.3) == [
        "1,300 rows have no box with a score of 0.3 or more (first: row 2); --threshold sets it",
        "1 row has an empty text as answer (row 1,700)",
    ]
    State(nothing={"boxes": -1}).save(tmp_path / "state.json")
    with pytest.raises(UserError, match="nothing holds no numbers"):
        State.read(tmp_path / "state.json")
