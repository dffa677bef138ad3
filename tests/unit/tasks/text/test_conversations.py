"""Proves that what a row of a conversation says is learned as it says, refused by name, or told: nothing else.

The reference is written by hand: the literal text of the supervised tokens, and the words of refusals and notices.
"""

from __future__ import annotations

import gc
import json
import resource
from pathlib import Path
from typing import Any

import pytest

from finetune.data.bad_rows import BadRow, BadValue
from finetune.models.chat_layouts import CHATML
from finetune.tasks.text import template_limits
from tests.unit.tasks.text.encoding import row_encoder, shown
from tests.unit.tasks.text.templates import DEEPSEEK, LLAMA_3, QWEN, QWEN_3, SIMPLE

NO_LATE_SYSTEM = SIMPLE.replace(
    "{{ '<|im_start|>'", "{% if m.role != 'system' or loop.first %}{{ '<|im_start|>'"
).replace("'<|im_end|>\\n' }}{% endfor %}", "'<|im_end|>\\n' }}{% endif %}{% endfor %}")


def _user(content: Any = "Hi", **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def _said(content: Any = "Yes.", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


@pytest.mark.parametrize(
    "mark", [{"weight": 0}, {"train": False}, {"training": False}, {"loss": False}, {"mask": True}, {"masked": 1}]
)
@pytest.mark.parametrize("template", [SIMPLE, LLAMA_3, CHATML, None], ids=["simple", "llama 3", "chatml", "plain"])
def test_a_turn_that_the_row_excludes_is_context_only(template: str | None, mark: dict[str, Any]) -> None:
    talk = [_user(), _said("Five.", **mark), _user("Sure?"), _said("Four.", weight=1)]
    text, spans, notices = shown(row_encoder(template), {"messages": talk})
    assert "Five." in text and len(spans) == 1 and spans[0].startswith("Four.<|") and notices == []
    with pytest.raises(BadRow, match="the row excludes every reply"):
        shown(row_encoder(template), {"messages": talk[:2]})


@pytest.mark.parametrize("template", [SIMPLE, LLAMA_3, CHATML, None], ids=["simple", "llama 3", "chatml", "plain"])
def test_the_assistant_may_begin(template: str | None) -> None:
    _, spans, _ = shown(row_encoder(template), {"messages": [_said("Welcome!"), _user("Sing."), _said("La la.")]})
    assert [span.partition("<|")[0] for span in spans] == ["Welcome!", "La la."]


def test_a_system_turn_is_printed_wherever_it_stands_or_the_row_is_refused() -> None:
    talk = [_user(), _said("Hello."), {"role": "system", "content": "In French now."}, _user("Hi!"), _said("Bonjour.")]
    for template in (SIMPLE, LLAMA_3, QWEN, CHATML, None):
        assert "In French now." in shown(row_encoder(template), {"messages": talk})[0]
    with pytest.raises(BadRow, match=r"leaves out the text of message 3 \(system\)"):
        shown(row_encoder(NO_LATE_SYSTEM), {"messages": talk})


def test_history_becomes_earlier_turns_that_are_learned() -> None:
    row = {"instruction": "And in German?", "input": "", "output": "Hund.", "history": [["Dog in French?", "Chien."]]}
    for history in (row["history"], json.dumps(row["history"])):
        for template in (SIMPLE, None):
            encoder = row_encoder(template)
            _, spans, _ = shown(encoder, {**row, "history": history})
            assert [span.partition("<|")[0] for span in spans] == ["Chien.", "Hund."]
            prompt = shown(encoder, {**row, "history": history}, with_targets=False)[0]
            assert "Chien." in prompt and "Hund." not in prompt
    for empty in ([], None, "", "[]"):
        assert shown(row_encoder(), {**row, "history": empty})[1] == ["Hund.<|im_end|>"]
    for wrong in ([["a"]], [["a", 1]], "words", 7):
        with pytest.raises(BadRow, match="history"):
            shown(row_encoder(), {**row, "history": wrong})
    with pytest.raises(BadRow, match="history cannot be used with prompt and completion as text"):
        shown(row_encoder(None), {"prompt": "a", "completion": "b", "history": [["a", "b"]]})


@pytest.mark.parametrize("template", [SIMPLE, None], ids=["template", "plain"])
def test_prompt_and_completion_may_be_messages(template: str | None) -> None:
    encoder = row_encoder(template)
    prompt = [_user("Say one."), _said("No."), _user("Please.")]
    for row in (
        {"prompt": prompt, "completion": [_said("One.")]},
        {"prompt": json.dumps(prompt), "completion": "One."},
        {"prompt": prompt, "completion": _said("One.")},
    ):
        text, spans, _ = shown(encoder, row)
        assert len(spans) == 1 and spans[0].startswith("One.<|") and "No." in text
        asked = shown(encoder, row, with_targets=False)[0]
        assert text.startswith(asked) and "Please." in asked
    with pytest.raises(BadRow, match="no assistant turn"):
        shown(encoder, {"prompt": prompt, "completion": [_user("One.")]})


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (
            [{"type": "image_url", "image_url": {"url": "a"}}, {"type": "text", "text": "b"}],
            "message 1 contains an image",
        ),
        ([{"type": "image", "image": "a"}], "message 1 contains an image, but this task reads only text"),
        ([{"type": "input_audio", "input_audio": {}}], "message 1 contains audio"),
        ([{"type": "video"}], "message 1 contains a video"),
        ([{"type": "tool_use", "name": "a"}], "part of type 'tool_use', which is not known"),
        ([7], "a part that is int"),
        (None, "message 1 has no content; it has role, content"),
        ({"text": "a"}, "content that is dict"),
        (True, "content that is bool"),
    ],
)
def test_what_is_no_text_is_refused_by_name(content: Any, why: str) -> None:
    with pytest.raises(BadRow, match=why):
        shown(row_encoder(), {"messages": [_user(content), _said()]})


def test_texts_in_lists_are_joined() -> None:
    for content in (["a ", "b"], [{"type": "text", "text": "a "}, {"type": "input_text", "text": "b"}]):
        assert "\na b<|im_end|>" in shown(row_encoder(), {"messages": [_user(content), _said()]})[0]
    assert "\n7<|im_end|>" in shown(row_encoder(), {"messages": [_user(7), _said()]})[0]


def test_an_empty_reply_is_not_taught_as_an_end() -> None:
    _, spans, notices = shown(row_encoder(), {"messages": [_user(), _said(""), _user("Well?"), _said("Yes.")]})
    assert spans == ["Yes.<|im_end|>"] and notices == [
        "an empty reply is not learned: it would teach the model to end immediately"
    ]
    with pytest.raises(BadRow, match="the reply is empty"):
        shown(row_encoder(), {"messages": [_user(), _said(" ")]})


def test_turns_after_the_last_reply_are_reported() -> None:
    text, _, notices = shown(row_encoder(), {"messages": [_user(), _said(), _user("Bye.")]})
    assert "Bye." not in text and notices == ["turns after the last reply are left out: nothing in them is learned"]
    assert "Bye." in shown(row_encoder(train_on="all"), {"messages": [_user(), _said(), _user("Bye.")]})[0]


def test_thoughts_are_learned_or_reported() -> None:
    thinking = _said("Four.", reasoning_content="Two and two.")
    in_words = _said("<think>\nTwo and two.\n</think>\n\nFour.")
    for template in (CHATML, QWEN_3, None):
        for reply in (thinking, in_words, _said("Four.", thinking="Two and two.")):
            _, spans, notices = shown(row_encoder(template), {"messages": [_user("2+2?"), reply]})
            assert "<think>\nTwo and two.\n</think>\n\nFour.<|" in spans[0] and notices == []
    for reply in (thinking, in_words):
        _, spans, notices = shown(row_encoder(DEEPSEEK), {"messages": [_user("2+2?"), reply]})
        assert "Two" not in spans[0] and "Four." in spans[0]
        assert any("leaves out the reasoning of the last reply" in notice for notice in notices)
        assert any("the generation prompt, which ends in" in notice for notice in notices)
    talk = [_user("2+2?"), thinking, _user("3+3?"), thinking]
    notices = shown(row_encoder(QWEN_3), {"messages": talk})[2]
    assert notices == ["the chat template leaves out the reasoning of replies before the last one: it is not learned"]
    with pytest.raises(BadRow, match="the reply is empty"):  # nothing but a thought, and that is cut away
        shown(row_encoder(DEEPSEEK), {"messages": [_user("2+2?"), _said("<think>Two.</think>")]})


def test_keys_that_a_template_does_not_use_are_reported() -> None:
    talk = [_user(name="Ann", lang="en"), _said(citations=["a"], stamp=7)]
    _, spans, notices = shown(row_encoder(), {"messages": talk})
    assert spans == ["Yes.<|im_end|>"]
    assert sorted(notices) == [
        "the chat template does not use 'citations' of the assistant's messages",
        "the chat template does not use 'lang' of the user's messages",
        "the chat template does not use 'name' of the user's messages",
    ]
    named = SIMPLE.replace("m.role + '\\n'", "m.role + (' ' + m.name if m.name else '') + '\\n'")
    text, _, notices = shown(row_encoder(named), {"messages": [_user(name="Ann"), _said()]})
    assert "user Ann\nHi" in text and notices == []


def test_a_flag_that_a_template_uses_is_not_dropped_because_an_earlier_one_was_false() -> None:
    flagged = SIMPLE.replace("m.role + '\\n'", "m.role + (' !' if m.urgent else '') + '\\n'")
    encoder = row_encoder(flagged)
    assert "user\nHi" in shown(encoder, {"messages": [_user(urgent=False), _said()]})[0]
    assert "user !\nHi" in shown(encoder, {"messages": [_user(urgent=True), _said()]})[0]


@pytest.mark.parametrize(
    "mark",
    [{"trainable": False}, {"loss_mask": 0}, {"learn": True}, {"loss_weight": 0.5}, {"isTrained": 1}, {"lossmask": 0}],
)
def test_a_mark_of_another_tool_is_refused_and_not_ignored(mark: dict[str, Any]) -> None:
    with pytest.raises(BadRow, match=rf"message 2 has {next(iter(mark))}: .*, which is not known.*weight.*masked"):
        shown(row_encoder(), {"messages": [_user(), _said("Five.", **mark), _user("Sure?"), _said("Four.")]})
    for other in (
        {"training_id": 0},
        {"constraint": True},
        {"glossary": False},
        {"learner": 1},
        {"lightweight": False},
    ):
        assert shown(row_encoder(), {"messages": [_user(), _said(**other)]})[1] == ["Yes.<|im_end|>"]


def test_special_tokens_in_the_words_of_a_turn_are_reported() -> None:
    written = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"  # a template was applied already
    for row in ({"messages": [_user(written), _said()]}, {"prompt": written, "completion": "Yes."}):
        assert sorted(shown(row_encoder(), row)[2]) == [
            "text of the user contains <|im_end|>, which is read as the special token, not as text",
            "text of the user contains <|im_start|>, which is read as the special token, not as text",
        ]
    assert shown(row_encoder(), {"messages": [_user("a <b> | [c]"), _said("<think>x</think> y")]})[2] == []
    assert shown(row_encoder(), {"text": written})[2] == []


def test_messages_as_a_mapping_of_lists_as_datasets_stores_sequences() -> None:
    for row in (
        {"role": ["user", "assistant"], "content": ["Hi", "Yes."]},
        {"from": ["human", "gpt"], "value": ["Hi", "Yes."], "weight": None},
        {
            "role": ["user", "assistant", "user", "assistant"],
            "content": ["a", "No.", "Hi", "Yes."],
            "weight": [None, 0, None, 1],
        },
    ):
        text, spans, notices = shown(row_encoder(), {"messages": row})
        assert "user\nHi<" in text and spans == ["Yes.<|im_end|>"] and notices == []
    with pytest.raises(BadRow, match="message 1 has the role"):
        shown(row_encoder(), {"messages": {"role": ["user", "assistant"], "content": ["Hi"]}})


def test_thoughts_as_parts_of_a_message_and_parts_that_are_not_known() -> None:
    for part in ({"type": "thinking", "thinking": "Hm."}, {"type": "reasoning", "text": "Hm."}):
        talk = [_user(), _said([part, {"type": "text", "text": "Yes."}])]
        assert shown(row_encoder(QWEN_3), {"messages": talk})[1] == ["<think>\nHm.\n</think>\n\nYes.<|im_end|>"]
    with pytest.raises(BadRow, match="a part of type 'table', which is not known"):
        shown(row_encoder(), {"messages": [_user([{"type": "table", "text": "x"}]), _said()]})


def test_content_and_value_of_one_message_agree_or_one_says_nothing() -> None:
    for one in (
        {"content": "", "value": "Real."},
        {"content": "Real.", "value": ""},
        {"content": "Real.", "value": "Real."},
    ):
        assert "user\nReal.<" in shown(row_encoder(), {"messages": [{"role": "user", **one}, _said()]})[0]
    with pytest.raises(BadRow, match="message 1 has both content and value, and they differ"):
        shown(row_encoder(), {"messages": [_user("One", value="Two"), _said()]})
    with pytest.raises(BadRow, match="message 1 has the role 'user', but is from 'gpt'"):
        shown(row_encoder(), {"messages": [_user(**{"from": "gpt"}), _said()]})
    for name in ("human", "Ann"):
        assert shown(row_encoder(), {"messages": [_user(**{"from": name}), _said()]})[1] == ["Yes.<|im_end|>"]


def test_system_prompts_of_the_column() -> None:
    system = {"role": "system", "content": "Be brief."}
    assert "Be kind." in shown(row_encoder(), {"system": "Be kind.", "messages": [_user(), _said()]})[0]
    notices = shown(row_encoder(), {"system": "Be kind.", "messages": [system, _user(), _said()]})[2]
    assert notices == ["the column system is not used: the conversation begins with a system turn of its own"]
    assert shown(row_encoder(), {"system": "Be brief.", "messages": [system, _user(), _said()]})[2] == []


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "{{ messages[0].nothing.more }}",
        "{{ messages[0] + 1 }}",
        "{{ 1 // 0 }}",
        "{% for i in range(10 ** 12) %}{% endfor %}",
        "{{ ('x' * 10 ** 12) | length }}",
        "{% macro deeper() %}{{ deeper() }}{% endmacro %}{{ deeper() }}",
    ],
)
def test_whatever_a_template_raises_makes_one_row_bad(template: str) -> None:
    faulty = "{% if 'Boom' in messages[0].content %}" + template + "{% endif %}" + SIMPLE
    good, bad = {"messages": [_user(), _said()]}, {"messages": [_user("Boom"), _said()]}
    one, other, third = row_encoder(faulty).encode([good, bad, good])
    assert isinstance(one, dict) and one == third
    assert isinstance(other, BadRow) and "the chat template" in str(other)


def test_time_and_size_of_rendering_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = (
        "{% if 'Boom' in messages[0].content %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
        "{% endif %}" + SIMPLE
    )
    encoder = row_encoder(endless)
    assert isinstance(encoder.encode([{"messages": [_user(), _said()]}])[0], dict)
    monkeypatch.setattr(template_limits, "SECONDS", 0.05)
    with pytest.raises(BadRow, match=r"took longer than 0\.05 seconds"):
        shown(encoder, {"messages": [_user("Boom"), _said()]})
    monkeypatch.setattr(template_limits, "CHARACTERS", 100)
    with pytest.raises(BadRow, match="characters, more than 100"):
        shown(encoder, {"messages": [_user("long " * 30), _said()]})


def test_what_a_template_has_made_is_gone_when_the_row_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The frames of json's encoder refer to each other, and to an indent of 80 million characters."""
    indented = "{% if 'Boom' in messages[0].content %}{{ messages | tojson(indent=80000000) }}{% endif %}" + SIMPLE
    encoder = row_encoder(indented)
    assert isinstance(encoder.encode([{"messages": [_user(), _said()]}])[0], dict)
    monkeypatch.setattr(template_limits, "BYTES", 120_000_000)
    monkeypatch.setattr(template_limits, "_measured", {})

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    gc.disable()
    try:
        before = resident()
        with pytest.raises(BadRow, match="needs more than"):
            shown(encoder, {"messages": [_user("Boom"), _said()]})
        assert resident() - before < 40_000_000
    finally:
        gc.enable()


def test_a_beginning_mark_is_not_doubled() -> None:
    encoder = row_encoder(SIMPLE, bos="<|begin|>")
    begin = encoder.tokenizer.convert_tokens_to_ids("<|begin|>")
    from tokenizers.processors import TemplateProcessing

    encoder.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", begin)]
    )
    plain = row_encoder(None, bos="<|begin|>")
    plain.tokenizer.backend_tokenizer.post_processor = encoder.tokenizer.backend_tokenizer.post_processor
    for one, row in (
        (encoder, {"messages": [_user(), _said()]}),
        (encoder, {"text": "<|begin|>Hello there"}),
        (encoder, {"text": "Hello there"}),
        (plain, {"prompt": "<|begin|>Hello", "completion": " there"}),
        (plain, {"prompt": "Hello", "completion": " there"}),
    ):
        for with_targets in (True, False):
            example = one.encode([row], with_targets=with_targets)[0]
            assert isinstance(example, dict)
            assert example["input_ids"].count(begin) == 1 and example["input_ids"][0] == begin


def test_a_batch_is_what_its_rows_are_alone() -> None:
    rows: list[dict[str, Any]] = [
        {"messages": [_user(), _said("One.")]},
        {"messages": [_user("Boom" * 5), _said(reasoning_content="Hm.")]},
        {"text": "Hello there"},
        {"instruction": "a", "output": "b", "history": [["c", "d"]]},
        {"messages": "broken"},
        {"prompt": "1 +", "completion": "1"},
        {"messages": [_said("First."), _user(), _said("  blanks\n"), _user("left")]},
        {"nothing": 1},
    ] * 3
    for template in (SIMPLE, QWEN_3, CHATML, None):
        encoder = row_encoder(template)
        for with_targets in (True, False):
            together = encoder.encode(rows, with_targets=with_targets)
            alone = [row_encoder(template).encode([row], with_targets=with_targets)[0] for row in rows[:8]]
            for one, other in zip(together, alone * 3, strict=True):
                assert str(one) == str(other)
                assert isinstance(one, BadRow) or one == other


def test_a_text_that_the_tokenizer_refuses_is_one_bad_row() -> None:
    good, bad = {"text": "Hello"}, {"text": "x \ud83d"}
    one, other, third = row_encoder().encode([good, bad, good])
    assert isinstance(one, dict) and one == third and isinstance(other, BadRow)


def test_reasons_can_name_columns_as_the_data_does() -> None:
    (bad,) = row_encoder().encode([{"completion": "x", "id": 7}])
    assert isinstance(bad, BadValue) and str(bad).endswith("it has completion, id")
    assert str(bad.with_columns({"completion": "response"})).endswith("it has response, id")
