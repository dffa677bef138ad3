"""Proves that a column which no row is made of is named, also where another form of row would have read it."""

from __future__ import annotations

from typing import Any

import pytest

from finetune.tasks import load_task
from finetune.tasks.facts import Facts
from finetune.tasks.text.dataset import describe_unused
from finetune.tasks.text.preference_pairs import roles_read
from tests.unit.tasks.text.encoding import row_encoder

TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
PAIR = {"chosen": "Good day.", "rejected": "No"}


class Rows(list[dict[str, Any]]):
    """A table of some rows, whose keys are roles."""

    name = "train"

    def __init__(self, *rows: dict[str, Any], **columns: str) -> None:
        super().__init__(rows)
        self.columns = columns


def notes(task: str, rows: Rows, reads: Any) -> list[str]:
    facts = Facts()
    describe_unused(facts, load_task(task), rows, reads)  # type: ignore[arg-type]
    return facts.notes


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"instruction": "Add.", "input": "1", "output": "2", "text": "Below is ...", "prompt": "p"}, "text, prompt"),
        ({"messages": TALK, "prompt": "Hi", "prompt_id": 3, "text": ""}, "prompt, prompt_id"),
        ({"messages": TALK, "history": [["a", "b"]], "system": "Be kind."}, "history"),
        ({"prompt": "Hi", "completion": "Yes?", "input": "1", "history": []}, "input"),
        ({"text": "All of it.", "system": "Be kind.", "tools": "[]"}, "system, tools"),
        ({"messages": TALK, "images": []}, "images"),
        ({"instruction": "Add.", "output": "2", "input": None, "text": ""}, ""),
    ],
)
def test_what_the_form_of_a_row_does_not_read_is_named(row: dict[str, Any], named: str) -> None:
    expected = [f"train: columns not used: {named}"] if named else []
    assert notes("causal_lm", Rows(row), row_encoder().roles_read) == expected


def test_a_column_of_some_rows_is_not_called_unused_and_has_the_name_of_the_data() -> None:
    rows = Rows({"messages": TALK, "text": "a"}, {"text": "b"}, {"messages": [], "prompt": "c"}, text="body")
    assert notes("causal_lm", rows, row_encoder().roles_read) == [
        "train: columns not used: prompt",
        "train: columns used in some rows, and not in others: body",
    ]


def test_without_a_template_a_system_prompt_beside_prompt_and_completion_is_not_used() -> None:
    row = {"prompt": "1 + 1 = ", "completion": "2", "system": "Be brief."}
    assert notes("causal_lm", Rows(row), row_encoder(None).roles_read) == ["train: columns not used: system"]
    assert notes("causal_lm", Rows(row), row_encoder().roles_read) == []


def test_columns_of_the_other_loss_and_the_other_prompt_are_named() -> None:
    pair = {"prompt": "Hi", "messages": TALK[:1], **PAIR}
    assert notes("reward_model", Rows(pair), roles_read) == ["train: columns not used: messages"]
    both = {"messages": TALK[:1], **PAIR, "completion": "Yes?", "label": True}
    assert notes("preference", Rows(both), roles_read) == ["train: columns not used: completion, label"]
