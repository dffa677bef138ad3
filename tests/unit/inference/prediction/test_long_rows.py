"""Rows that are longer than the model reads: told with their place where they are cut, an error of their own where splits leave
them out; with labels as without, and never asked something else than what stands in the row.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from finetune.data.prepare.notices import Notices
from finetune.data.sources.streams import MemoryStream
from finetune.inference.answering import RowError
from finetune.inference.prediction.feeder import Asked, encode_window, read_windows
from finetune.inference.whole_rows import WholeRows
from tests.contract.examples import EXAMPLES
from tests.prepared import Prepared, prepare

LONG = "the film is dull and cold and long " * 9
LIMITS = {"max_length": 40, "max_source_length": 40, "max_target_length": 40}
ROWS: dict[str, dict[str, Any]] = {
    "text_classification": {"text": LONG, "label": "good"},
    "token_classification": {"tokens": LONG.split(), "tags": ["O"] * len(LONG.split())},
    "sequence_regression": {"text": LONG, "label": 1.0},
    "reward_model": {"prompt": "Hi.", "chosen": f"Apple. {LONG}", "rejected": "Stone."},
    "seq2seq": {"source": LONG, "target": "ein Film"},
}
SHORT: dict[str, dict[str, Any]] = {
    "text_classification": {"text": "a fine film", "label": "good"},
    "token_classification": {"tokens": ["Ann", "left"], "tags": ["B-per", "O"]},
    "sequence_regression": {"text": "a fine film", "label": 1.0},
    "reward_model": {"prompt": "Hi.", "chosen": "Apple.", "rejected": "Stone."},
    "seq2seq": {"source": "ein Hund", "target": "a dog"},
}
LABELS = ("label", "tags", "rejected", "target", "output")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Prepared] = {}

    def get(task: str) -> Prepared:
        if task not in made:
            example = next(example for example in EXAMPLES if example.task == task)
            made[task] = prepare(example.recipe(tmp_path_factory.mktemp(task)))
        return made[task]

    return get


def encode(prepared: Prepared, on_long: str, rows: list[dict[str, Any]]) -> tuple[list[Any], list[str]]:
    """What becomes of each row, and what is told at the end."""
    artifacts = prepared.artifacts
    known = {name: value for name, value in LIMITS.items() if name in artifacts.settings}
    options = {name: value for name, value in LIMITS.items() if name not in known and hasattr(artifacts.options, name)}
    artifacts = replace(
        artifacts,
        settings={**artifacts.settings, **known},
        options=artifacts.options.model_copy(update={"on_long": on_long, **options}),
    )
    card, notices = prepared.task.card, Notices()
    asked = Asked(MemoryStream(rows, card), card, WholeRows(prepared.task, artifacts), lambda one: 1, 100)
    ((window, _),) = read_windows(asked)
    return encode_window(asked, window, notices), notices.lines()


@pytest.mark.parametrize("labeled", [True, False], ids=["labeled", "unlabeled"])
@pytest.mark.parametrize("task", ROWS)
def test_a_long_text_is_cut_and_told_or_an_error(task: str, labeled: bool, prepared: Any) -> None:
    rows = [SHORT[task], ROWS[task], SHORT[task]]
    if not labeled:
        rows = [{key: value for key, value in row.items() if key not in LABELS} for row in rows]
    pieces, told = encode(prepared(task), "truncate", rows)
    assert all(isinstance(item, list) and len(item[0]["input_ids"]) <= 40 for item in pieces), pieces
    assert [item[0]["$group"] for item in pieces] == [int(labeled)] * 3
    assert len(told) == 1 and told[0].startswith("1 row: only the first 40 tokens of the") and "row 1)" in told[0], told
    for on_long in ("drop", "error"):
        pieces, told = encode(prepared(task), on_long, rows)
        assert [isinstance(item, RowError) for item in pieces] == [False, True, False], pieces
        assert pieces[1].kind == "too_long" and "40" in pieces[1].message and not told, pieces[1]


TALK = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Good day."}]
REPLIES: dict[str, dict[str, Any]] = {  # where the reply alone is too long
    "causal_lm": {"instruction": "Name a fruit.", "output": LONG},
    "preference": {"prompt": "Name a fruit.", "chosen": f"Apple. {LONG}", "rejected": "Stone."},
}


@pytest.mark.parametrize("on_long", ["truncate", "drop", "error", "split"])
@pytest.mark.parametrize("task", REPLIES)
def test_a_prompt_is_asked_as_it_is_whatever_is_cut_from_its_reply(task: str, on_long: str, prepared: Any) -> None:
    if (task, on_long) == ("preference", "split"):
        pytest.skip("pairs are not split")
    limited = prepared(task)
    alone = {key: value for key, value in REPLIES[task].items() if key not in ("output", "chosen", "rejected")}
    LIMITS["max_length"] = 120
    try:
        (asked,), _ = encode(limited, on_long, [alone])
        (item,), told = encode(limited, on_long, [REPLIES[task]])
    finally:
        LIMITS["max_length"] = 40
    example = item[0]
    end = example.get("reply_start", example["span"][0] if "span" in example else None)
    assert example["input_ids"][:end] == asked[0]["input_ids"]
    assert len(told) == 1 and "row 0)" in told[0], told
    assert ("only the first 120 tokens" if on_long == "truncate" else "answered without its target") in told[0]


@pytest.mark.parametrize("on_long", ["truncate", "drop", "error", "split"])
def test_a_conversation_is_not_answered_at_an_earlier_turn(on_long: str, prepared: Any) -> None:
    """Its first reply is within the limit, its last prompt is not."""
    turns = [*TALK, {"role": "user", "content": LONG * 3}, {"role": "assistant", "content": "Farewell."}]
    for messages in (turns, turns[:-1]):
        (item,), _ = encode(prepared("causal_lm"), on_long, [{"messages": messages}])
        assert isinstance(item, RowError) and item.kind == "too_long", item


def test_the_report_of_a_split_counts_what_is_cut_once(tmp_path: Any) -> None:
    example = next(example for example in EXAMPLES if example.task == "text_classification")
    notes = prepare(example.recipe(tmp_path, options={"max_length": 6})).facts.notes
    assert len([note for note in notes if "6 tokens" in note]) == 1
