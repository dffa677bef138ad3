"""Proves that every kind of finding finds the row that has the fault, with its place, and that clean data has none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from finetune.inspection.checks import NAMES
from finetune.inspection.findings import Finding, fails_strict
from finetune.tasks import CARDS
from tests.e2e.tiny import PACKAGE
from tests.unit.inspection.inspected import Data, reviews, rows_of, sentence

MakeData = Callable[..., Data]

# How a bug in a template looks: the end mark stands outside of the part that is generated, with a line feed between.
UNENDED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}{% endgeneration %}{{ '\\n<|im_end|>\\n' }}"
    "{% else %}{{ m['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.mark.parametrize("task", sorted(CARDS))
def test_clean_data_has_no_findings(data: MakeData, task: str) -> None:
    assert data(task).findings() == []


def test_every_check_is_tested_here() -> None:
    """Each check has a test or a parameter below that names a kind of its file."""
    tested = Path(__file__).read_text(encoding="utf-8")
    kinds = {
        name: (Path(__file__).parents[3] / "finetune" / "inspection" / "checks" / f"{name}.py").read_text("utf-8")
        for name in NAMES
    }
    assert len(kinds) >= 15
    missing = [name for name, text in kinds.items() if not any(f'"{kind}"' in tested for kind in declared(text))]
    assert missing == []


def declared(text: str) -> list[str]:
    """The kinds that the docstring of a check begins with: "leak, near-leak: rows ..."."""
    return [kind.strip() for kind in text.removeprefix('"""').partition(":")[0].split(",")]


def reply(data: Data, row: int, text: Any) -> None:
    data.train[row]["messages"][1]["content"] = text


def asked(data: Data, row: int, text: str) -> None:
    data.train[row]["messages"][0]["content"] = text


def no_assistant(data: Data) -> None:
    data.train[7]["messages"] = [{"role": "user", "content": "Hello?"}]


def two_users(data: Data) -> None:
    data.train[7]["messages"].insert(0, {"role": "user", "content": "First this."})


def late_system(data: Data) -> None:
    data.train[7]["messages"].insert(1, {"role": "system", "content": "Be brief."})


def assistant_first(data: Data) -> None:
    data.train[7]["messages"].insert(0, {"role": "assistant", "content": "Hello."})


def user_last(data: Data) -> None:
    data.train[7]["messages"].append({"role": "user", "content": "Thanks."})


FAULTS: list[tuple[str, str, Callable[[Data], object]]] = [
    ("empty-text", "error", lambda data: data.train.__setitem__(7, {"instruction": "Say nothing.", "output": " "})),
    ("empty-text", "warn", lambda data: asked(data, 7, " ")),
    ("prompt-cut", "error", lambda data: asked(data, 7, sentence(9, 60))),
    ("reply-cut", "warn", lambda data: reply(data, 7, sentence(9, 60))),
    ("nothing-learned", "error", no_assistant),
    ("role-order", "warn", two_users),
    ("role-order", "warn", late_system),
    ("role-order", "warn", assistant_first),
    ("role-order", "warn", user_last),
    ("duplicate", "warn", lambda data: data.train.__setitem__(7, data.train[3])),
    ("near-duplicate", "info", lambda data: data.train.__setitem__(7, near(data.train[3]))),
    (
        "unusable-row",
        "error",
        lambda data: data.train.__setitem__(7, {"messages": [{"role": "nobody", "content": "x"}]}),
    ),
    ("odd-characters", "warn", lambda data: reply(data, 7, "a bell \x07 rings")),
    ("odd-characters", "warn", lambda data: reply(data, 7, "lost \ufffd here")),
    ("odd-characters", "warn", lambda data: reply(data, 7, "turned \u202e around")),
    ("odd-characters", "warn", lambda data: reply(data, 7, "private \ue123 use")),
    ("invisible-characters", "info", lambda data: reply(data, 7, "a zero\u200bwidth space")),
    ("mojibake", "warn", lambda data: reply(data, 7, "a cafÃ© in spring")),
    ("mojibake", "warn", lambda data: reply(data, 7, "don\u00e2\u20ac\u2122t go")),
    ("mixed-scripts", "warn", lambda data: reply(data, 7, "my p\u0430ypal account")),
    ("doubled-bos", "warn", lambda data: None),
    ("long-outlier", "warn", lambda data: reply(data, 7, sentence(9, 600))),
]


def calls_a_tool(data: Data) -> None:
    call = {"type": "function", "function": {"name": "look", "arguments": "{}"}}
    schema = {"type": "function", "function": {"name": "look", "parameters": {}}}
    data.train[7]["messages"][1] = {"role": "assistant", "content": None, "tool_calls": [call]}
    data.train[7]["tools"] = [schema]


def shows_a_picture(data: Data) -> None:
    data.train[7]["messages"][0]["content"] = [{"type": "image", "image": "a.png"}]


@pytest.mark.parametrize("insert", [calls_a_tool, shows_a_picture])
def test_what_stands_in_place_of_words_is_no_empty_text(data: MakeData, insert: Callable[[Data], object]) -> None:
    found = data("causal_lm")
    insert(found)
    assert rows_of(found.findings(), "empty-text") == []


def test_a_question_at_the_end_is_no_other_prompt(data: MakeData) -> None:
    found = data("causal_lm")
    user_last(found)
    assert rows_of(found.findings(), "prompt-mismatch") == []


def near(row: dict[str, Any]) -> dict[str, Any]:
    """A copy of a conversation in other letters, with one word changed."""
    changed = json.loads(json.dumps(row))
    changed["messages"][1]["content"] = changed["messages"][1]["content"].upper().replace("WELL", "Good")
    return changed


@pytest.mark.parametrize(
    ("kind", "severity", "insert"),
    [fault for fault in FAULTS if fault[0] != "doubled-bos"],
    ids=lambda one: str(one)[:24],
)
def test_a_fault_is_found_in_its_row(
    data: MakeData, kind: str, severity: str, insert: Callable[[Data], object]
) -> None:
    """Row 7, which is line 8, and no other row has this finding."""
    found = data("causal_lm")
    insert(found)
    findings = found.findings()
    assert rows_of(findings, kind) == [("train", 7)]
    (one,) = [one for one in findings if one.kind == kind]
    assert (one.severity, one.count) == (severity, 1)
    assert one.rows[0].place.endswith("train.jsonl:8")
    assert one.what
    assert fails_strict(findings) == any(one.severity != "info" for one in findings)


def test_bad_rows_are_warnings_where_the_recipe_skips_them(data: MakeData) -> None:
    found = data("causal_lm")
    found.on_bad_row = "skip"
    found.train[7] = {"instruction": "Say nothing.", "output": " "}
    found.train[9] = {"messages": "no list"}
    findings = {one.kind: one for one in found.findings()}
    assert findings["empty-text"].severity == findings["unusable-row"].severity == "warn"
    assert rows_of(list(findings.values()), "unusable-row") == [("train", 9)]


def test_a_line_that_no_reader_takes_is_reported_by_its_place(data: MakeData, monkeypatch: pytest.MonkeyPatch) -> None:
    found = data("text_classification")
    found.train[4] = {"other": "column"}
    (one,) = [one for one in found.findings() if one.kind == "unusable-row"]
    assert one.rows[0].id is None
    assert one.rows[0].place.endswith("train.jsonl:5")


def test_rows_left_out_as_the_recipe_says_are_a_note(data: MakeData) -> None:
    found = data("causal_lm", on_long="drop")
    reply(found, 7, sentence(9, 60))
    (one,) = [one for one in found.findings() if one.kind == "too-long"]
    assert (one.severity, rows_of([one], "too-long")) == ("info", [("train", 7)])


def test_an_input_that_is_cut(data: MakeData) -> None:
    found = data("text_classification")
    found.train[7]["text"] = sentence(9, 200)
    (one,) = [one for one in found.findings() if one.kind == "text-cut"]
    assert rows_of([one], "text-cut") == [("train", 7)]
    assert "120 of " in one.rows[0].note


def test_leaks_exact_and_near(data: MakeData) -> None:
    found = data("causal_lm")
    found.validation[2] = found.train[5]
    found.validation[4] = near(found.train[6])
    findings = {one.kind: one for one in found.findings()}
    assert rows_of(list(findings.values()), "leak") == [("validation", 2)]
    assert findings["leak"].severity == "error"
    assert findings["leak"].rows[0].note.endswith("train.jsonl:6")
    assert rows_of(list(findings.values()), "near-leak") == [("validation", 4)]
    assert findings["near-leak"].rows[0].note.endswith("train.jsonl:7")


def test_a_leak_counts_whatever_the_label(data: MakeData) -> None:
    found = data("text_classification")
    found.validation[2] = {"text": found.train[5]["text"], "label": "good"}
    assert rows_of(found.findings(), "leak") == [("validation", 2)]


def test_equal_texts_with_different_labels(data: MakeData) -> None:
    found = data("text_classification")
    found.train[7] = {"text": found.train[4]["text"], "label": "bad"}
    findings = {one.kind: one for one in found.findings()}
    assert rows_of(list(findings.values()), "conflicting-labels") == [("train", 7)]
    assert "bad, but good at" in findings["conflicting-labels"].rows[0].note


def test_a_reply_without_a_learned_end(data: MakeData) -> None:
    """A template that marks replies without their end; every row has the fault."""
    found = data("causal_lm")
    found.model["tokenizer"] = str(templated(found, UNENDED))
    (one,) = [one for one in found.findings() if one.kind == "end-of-turn"]
    assert (one.severity, one.count) == ("error", len(found.train) + len(found.validation))
    assert "<|im_end|>" in one.what


def test_a_template_that_marks_nothing(data: MakeData) -> None:
    found = data("causal_lm")
    unmarked = UNENDED.replace("{% generation %}{{ m['content'] }}{% endgeneration %}", "{{ m['content'] }}")
    marks = "{% if messages[-1]['content'] == 'Hm.' %}" + unmarked + "{% else %}" + UNENDED + "{% endif %}"
    reply(found, 7, "Hm.")
    found.model["tokenizer"] = str(templated(found, marks))
    assert rows_of(found.findings(), "nothing-learned") == [("train", 7)]


def test_a_prompt_that_differs_from_the_training_text(data: MakeData) -> None:
    found = data("causal_lm")
    template = UNENDED.replace("{{ '<|im_start|>assistant\\n' }}{% endif %}", "{{ '<|im_start|>bot\\n' }}{% endif %}")
    assert template != UNENDED
    found.model["tokenizer"] = str(templated(found, template))
    (one,) = [one for one in found.findings() if one.kind == "prompt-mismatch"]
    assert one.count == len(found.train)
    assert "with 'assis" in one.rows[0].note
    assert "with 'bot" in one.rows[0].note


def test_a_text_that_begins_twice(data: MakeData) -> None:
    """The template's beginning-of-text token, and the one in the text, are one too many: "doubled-bos"."""
    found = data("causal_lm")
    template = "{{ bos_token }}{{ bos_token }}" + UNENDED.replace("{{ '\\n<|im_end|>\\n' }}", "{{ '<|im_end|>\\n' }}")
    found.model["tokenizer"] = str(templated(found, template, bos_token="<|im_start|>"))
    assert len(rows_of(found.findings(), "doubled-bos")) == len(found.train) + len(found.validation)


def templated(data: Data, template: str, **tokens: str) -> Path:
    """A folder with the tokenizer of clean data under another chat template."""
    tokenizer = data.inspection().artifacts.processor
    tokenizer.chat_template = template
    for name, token in tokens.items():
        setattr(tokenizer, name, token)
    tokenizer.save_pretrained(data.folder / "tokenizer")
    return data.folder / "tokenizer"


def test_unknown_tokens(data: MakeData) -> None:
    found = data("text_classification")
    found.model |= {"tokenizer": PACKAGE, "config": {}}
    found.train[7]["text"] = "a \U0001f701 of air"
    (one,) = [one for one in found.findings() if one.kind == "unknown-tokens"]
    assert (one.severity, one.rows[0].note, rows_of([one], one.kind)) == ("info", "1 unknown", [("train", 7)])


def test_one_class_only(data: MakeData) -> None:
    found = data("text_classification")
    found.validation = [row for row in reviews(24, 500) if row["label"] == "good"]
    (one,) = [one for one in found.findings() if one.kind == "one-class"]
    assert (one.severity, one.count) == ("warn", 12)
    assert "validation" in one.what


def test_classes_that_are_missing(data: MakeData) -> None:
    found = data("text_classification")
    for place in (3, 5):
        found.train[place]["label"] = "mixed"
    (one,) = [one for one in found.findings() if one.kind == "missing-class"]
    assert one.what == "classes of train do not occur in validation: mixed"
    stated = data("text_classification", labels=["good", "bad", "never"])
    (one,) = [one for one in stated.findings() if one.kind == "missing-class"]
    assert one.what == "classes never occur in train: never"


def test_classes_that_are_rare(data: MakeData) -> None:
    found = data("text_classification")
    assert not [one for one in found.findings() if one.kind == "rare-class"]
    found.validation[0]["label"] = found.train[3]["label"] = "mixed"
    (one,) = [one for one in found.findings() if one.kind == "rare-class"]
    assert (one.severity, one.count) == ("info", 1)
    assert one.what.endswith("at most a tenth of an even share of 30 labels: mixed 1 (3.3%)")
    assert "class_weights" not in one.remedy


def test_a_cut_translation_ends_where_it_is_cut(data: MakeData) -> None:
    found = data("seq2seq")
    found.train[7]["target"] = sentence(77, 300)
    (one,) = [one for one in found.findings() if one.kind == "reply-cut"]
    assert one.what.endswith("the model learns to end where they are cut")


@pytest.mark.parametrize("box", [[15, 3, 9, 9], [2, 3, 0, 9], [-9, 3, 12, 9], [90, 3, 9, 9]])
@pytest.mark.parametrize("policy", ["error", "skip"])
def test_boxes_outside_or_without_area(data: MakeData, box: list[int], policy: str) -> None:
    found = data("object_detection")
    found.on_bad_row = policy
    found.train[7]["objects"]["bbox"].append(box)
    found.train[7]["objects"]["category"].append("high")
    (one,) = found.findings()
    assert (one.kind, one.severity) == ("box", "error" if policy == "error" else "warn")
    assert rows_of([one], "box") == [("train", 7)]
    assert "box [" in one.rows[0].note


@pytest.mark.parametrize("task", ["image_classification", "object_detection"])
@pytest.mark.parametrize("fault", ["truncated", "missing", "no image"])
def test_images_that_fail(data: MakeData, task: str, fault: str) -> None:
    found = data(task)
    path = Path(found.train[7]["image"])
    if fault == "truncated":
        path.write_bytes(path.read_bytes()[:200])
    elif fault == "missing":
        path.unlink()
    else:
        path.write_text("hello")
    (one,) = found.findings()
    assert (one.kind, rows_of([one], one.kind)) == ("broken-image", [("train", 7)])


def test_copies_of_images(data: MakeData) -> None:
    found = data("image_classification")
    Image.open(found.train[4]["image"]).save(found.train[8]["image"])
    Image.open(found.train[4]["image"]).save(found.validation[3]["image"])
    findings = found.findings()
    assert rows_of(findings, "duplicate") == [("train", 8)]
    assert rows_of(findings, "leak") == [("validation", 3)]


def test_empty_words_and_pairs(data: MakeData) -> None:
    words = data("token_classification")
    words.train[7]["tokens"], words.train[7]["tags"] = [], []
    assert rows_of(words.findings(), "empty-text") == [("train", 7)]
    replies = data("preference")
    replies.train[7]["chosen"] = " "
    assert rows_of(replies.findings(), "empty-text") == [("train", 7)]


def test_messages_before_two_replies_end_with_the_user(data: MakeData) -> None:
    found = data("preference")
    roles = ("user", "assistant", "user")
    talk = [{"role": role, "content": sentence(20 + place)} for place, role in enumerate(roles)]
    found.train[7] = {"messages": talk, "chosen": "Good day.", "rejected": "No."}
    assert rows_of(found.findings(), "role-order") == []
    found.train[7]["messages"] = [talk[0], *talk]
    assert rows_of(found.findings(), "role-order") == [("train", 7)]


def test_only_notes_pass_strict() -> None:
    assert not fails_strict([])
    assert not fails_strict([Finding("a", "info", "x")])
    assert fails_strict([Finding("a", "info", "x"), Finding("b", "warn", "x")])
    assert fails_strict([Finding("b", "error", "x")])
