"""Proves that what is asked and what is replied are found as pairs of columns, in every data set that the docs name."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.data.columns import resolve_columns
from finetune.recipe.column_pairs import PAIRS
from finetune.recipe.starter import guess_columns
from finetune.tasks import CARDS
from finetune.tasks.text.row_formats import form_of

CAUSAL = CARDS["causal_lm"]


def _mapping(columns: list[str], task: str = "causal_lm", **explicit: str) -> dict[str, str]:
    card = CARDS[task]
    mapping, faults = resolve_columns(explicit, columns, card, card.rows.required)
    assert not faults
    return mapping


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["prompt", "response"], {"prompt": "prompt", "completion": "response"}),
        (["prompt", "answer"], {"prompt": "prompt", "completion": "answer"}),
        (["prompt", "output"], {"prompt": "prompt", "completion": "output"}),
        (["prompt", "reply", "id"], {"prompt": "prompt", "completion": "reply"}),
        (["input", "output"], {"prompt": "input", "completion": "output"}),
        (["inputs", "targets"], {"prompt": "inputs", "completion": "targets"}),
        (["instruction", "response", "context"], {"instruction": "instruction", "output": "response", "input": "context"}),
        (["instruction", "completion"], {"instruction": "instruction", "output": "completion"}),
        (["instruction", "input", "output"], {"instruction": "instruction", "input": "input", "output": "output"}),
        (["question", "answer"], {"instruction": "question", "output": "answer"}),
        (["query", "response"], {"instruction": "query", "output": "response"}),
        (["problem", "solution", "answer"], {"instruction": "problem", "output": "solution"}),
        (["system_prompt", "query", "answer"], {"system": "system_prompt", "instruction": "query", "output": "answer"}),
        (["dialog"], {"messages": "dialog"}),
        (["messages", "functions"], {"messages": "messages", "tools": "functions"}),
    ],
)  # fmt: skip
def test_pairs_of_language_modeling(columns: list[str], expected: dict[str, str]) -> None:
    assert _mapping(columns) == expected


def test_every_known_pair_gives_a_form_of_row() -> None:
    count = 0
    for roles in (("instruction", "output"), ("prompt", "completion")):
        for asked, replied, _ in PAIRS[roles]:
            mapping = _mapping([asked, replied, "id"])
            row = dict.fromkeys(mapping, "x")
            assert form_of(row) == ("alpaca" if roles[0] == "instruction" else "prompt_completion")
            assert guess_columns(CAUSAL, [asked, replied]) == mapping
            count += 1
    assert count >= 18


def test_one_half_from_the_recipe_finds_the_other() -> None:
    assert _mapping(["q", "output"], prompt="q") == {"prompt": "q", "completion": "output"}
    assert _mapping(["q", "response"], instruction="q") == {"instruction": "q", "output": "response"}


def test_a_question_alone_is_enough_to_be_answered() -> None:
    assert _mapping(["question"]) == {"instruction": "question"}


def test_other_tasks() -> None:
    assert _mapping(["dialogue", "summary"], "seq2seq") == {"source": "dialogue", "target": "summary"}
    pairs = {"chosen": "chosen", "rejected": "rejected", "prompt": "question"}
    assert _mapping(["question", "chosen", "rejected"], "preference") == pairs
    assert _mapping(["input", "preferred_output", "non_preferred_output"], "preference") == {
        "input": "input", "chosen": "preferred_output", "rejected": "non_preferred_output",
    }  # fmt: skip
    assert _mapping(["prompt", "response", "label"], "preference") == {
        "prompt": "prompt", "completion": "response", "label": "label",
    }  # fmt: skip


def test_the_table_in_the_docs_is_the_one_of_the_code() -> None:
    text = (Path(__file__).parents[3] / "docs" / "your-data.md").read_text(encoding="utf-8")
    count = 0
    for known in PAIRS.values():
        for asked, replied, sets in known:
            assert any(
                line.startswith("|") and f"`{asked}`, `{replied}`" in line and sets in line
                for line in text.splitlines()
            ), (asked, replied)
            count += 1
    assert count >= 35


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["Instruction", "Response"], {"instruction": "Instruction", "output": "Response"}),
        (["Question", "ANSWER "], {"instruction": "Question", "output": "ANSWER "}),
        (["Text", "text"], {"text": "text"}),
        (["TEXT", "Text", "Prompt", "completion"], {"prompt": "Prompt", "completion": "completion"}),
    ],
)
def test_names_are_recognized_whatever_their_case_where_one_column_has_them(
    columns: list[str], expected: dict[str, str]
) -> None:
    assert _mapping(columns) == expected


def test_case_is_kept_where_the_recipe_maps_a_column_and_in_faults() -> None:
    assert _mapping(["Review", "Label", "text"], "text_classification", text="Review") == {
        "text": "Review",
        "label": "Label",
    }
    _, (fault,) = resolve_columns({}, ["Instructions", "Resp"], CAUSAL, CAUSAL.rows.required)
    assert "data.columns: {instruction: <column>}" in fault.message and fault.nearest == "Instructions"
