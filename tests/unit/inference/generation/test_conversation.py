"""Tests that a conversation is the template's text of its turns, cut at the beginning when it becomes longer than the model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from finetune.data.bad_rows import BadRow
from finetune.errors import UserError
from finetune.inference.generation.conversation import Conversation
from finetune.tasks.causal_lm.task import TASK
from finetune.tasks.seq2seq.task import TASK as SEQ2SEQ
from tests.unit.inference.generation.models import letters


def conversation(limit: int = 0, system: str = "", default: str = "") -> Conversation:
    artifacts: Any = SimpleNamespace(
        processor=letters(), options=SimpleNamespace(system=default), settings={"own_template": True}
    )
    return Conversation(TASK, artifacts, system, limit)


def text(talk: Conversation, turn: str) -> str:
    return letters().decode(talk.ask(turn).ids)


def test_turns_and_replies_follow_the_template() -> None:
    talk = conversation(system="BE BRIEF")
    assert text(talk, "HI") == "S:BE BRIEF<turn>U:HI<turn>A:".replace("S:", " :").replace("U:", " :").replace(
        "A:", " :"
    )
    talk.reply("HO")
    assert text(talk, "AND?").count("<turn>") == 4
    talk.reply("NO")
    talk.reset()
    assert text(talk, "X") == " :BE BRIEF<turn> :X<turn> :"


def test_the_system_prompt_of_the_training_is_the_default() -> None:
    assert text(conversation(default="OLD"), "X").startswith(" :OLD<turn>")
    assert text(conversation(default="OLD", system="NEW"), "X").startswith(" :NEW<turn>")


def test_the_oldest_turns_are_left_out_and_the_system_prompt_stays() -> None:
    talk = conversation(limit=40, system="SYS")
    left_out = []
    for turn in range(6):
        prompt = talk.ask(f"TURN {turn}")
        left_out.append(prompt.left_out)
        assert len(prompt.ids) <= 40
        said = letters().decode(prompt.ids)
        assert said.startswith(" :SYS<turn>") and f"TURN {turn}" in said
        talk.reply("OK")
    assert left_out[0] == 0 and left_out[-1] > 0 and left_out == sorted(left_out)
    assert all(count % 2 == 0 for count in left_out)  # a question goes with its reply


def test_a_turn_that_cannot_fit_changes_nothing() -> None:
    talk = conversation(limit=30)
    talk.ask("ONE")
    talk.reply("TWO")
    with pytest.raises(BadRow, match="there is room for 30"):
        talk.ask("X" * 50)
    assert text(talk, "AGAIN") == " :ONE<turn> :TWO<turn> :AGAIN<turn> :"


def test_a_turn_without_a_reply_is_withdrawn() -> None:
    talk = conversation()
    talk.ask("ONE")
    talk.withdraw()
    assert text(talk, "TWO") == " :TWO<turn> :"


def test_models_without_turns_are_refused_or_remember_nothing() -> None:
    tokenizer = letters()
    tokenizer.chat_template = None
    artifacts: Any = SimpleNamespace(processor=tokenizer, options=SimpleNamespace(), settings={})
    with pytest.raises(UserError, match="no chat template"):
        Conversation(TASK, artifacts, "", 0)
    with pytest.raises(UserError, match="no system prompt"):
        Conversation(SEQ2SEQ, artifacts, "SYS", 0)
    assert not Conversation(SEQ2SEQ, artifacts, "", 0).remembers
