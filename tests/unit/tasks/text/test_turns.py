"""The turns of a prompt: those that a template wrote, and none where they are not certain."""

from __future__ import annotations

import json
from typing import Any

import pytest

from finetune.tasks.text.turns import prompt_turns

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = (
    "<s>{% for m in messages %}{% if m.role == 'system' %}{{ raise('no system') }}{% elif m.role == 'user' %}"
    "[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
HEADINGS = (
    "{% for m in messages %}{% if m.role == 'user' %}### Instruction:\n{{ m.content }}\n\n### Response:\n"
    "{% elif m.role == 'system' %}{{ m.content }}\n\n{% else %}{{ m.content }}</s>\n\n{% endif %}{% endfor %}"
)
TALK = [
    {"role": "user", "content": "Hi."},
    {"role": "assistant", "content": "Good day."},
    {"role": "user", "content": "What is\n\n2 + 2?"},
]


class Characters:
    """A tokenizer of characters."""

    all_special_tokens = ("<|im_start|>", "<|im_end|>", "<s>", "</s>")

    def __init__(self, template: str) -> None:
        self.chat_template = template

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> str:
        import jinja2

        return str(jinja2.Template(self.chat_template).render(messages=messages, **options))


def turns(template: str, messages: list[dict[str, str]], prompt: str = "") -> Any:
    tokenizer = Characters(template)
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True) + prompt
    found = prompt_turns(tokenizer, [ord(letter) for letter in text])
    return json.loads(found) if found else []


@pytest.mark.parametrize("template", [CHATML, INST, HEADINGS])
@pytest.mark.parametrize("count", [1, 3])
def test_turns_of_a_conversation(template: str, count: int) -> None:
    assert turns(template, TALK[-count:]) == [[turn["role"], turn["content"]] for turn in TALK[-count:]]


def test_a_system_prompt_is_a_turn() -> None:
    system = {"role": "system", "content": "Be brief."}
    assert turns(CHATML, [system, *TALK])[:2] == [["system", "Be brief."], ["user", "Hi."]]


def test_what_is_not_certain_has_no_turns() -> None:
    tool = {"role": "tool", "content": "4"}
    assert turns(CHATML, [*TALK, tool]) == []  # a speaker whose marks are not known
    assert turns(CHATML, TALK, prompt="Four") == []  # something is said already
    assert turns("", TALK) == []
    assert prompt_turns(Characters(CHATML), [ord(letter) for letter in "Once upon a time"]) == ""
