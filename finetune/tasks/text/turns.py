"""Who said what in a prompt that a chat template wrote, for people. Learning does not depend on it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

START, SYSTEM, USER, ASSISTANT = "", "system", "user", "assistant"
_PROBES = tuple(f"\ue000{index}\ue001" for index in range(5))  # texts that no template holds
_CONVERSATIONS = ((USER, ASSISTANT, USER, ASSISTANT), (SYSTEM, USER, ASSISTANT, USER, ASSISTANT))

Leads = dict[tuple[str, str], str]


def prompt_turns(tokenizer: Any, ids: Sequence[int]) -> str:
    """The turns before a reply as JSON, [["user", "Hi."], ["assistant", "Good day."], ["user", "Bye."]]; "" where the
    template's marks are not found around them, as with other roles, such as tools.
    """
    text = tokenizer.decode(ids)
    turns = _split(text, template_leads(tokenizer))
    special = [token for token in tokenizer.all_special_tokens if token]
    if not turns or any(token in said for _, said in turns for token in special):
        return ""
    return json.dumps(turns, ensure_ascii=False)


def template_leads(tokenizer: Any) -> Leads:
    """(speaker before, speaker) -> what the template puts between their words. {} for a template that refuses."""
    found: Leads = {}
    if not tokenizer.chat_template:
        return found
    for speakers in _CONVERSATIONS:
        turns = [{"role": role, "content": mark} for role, mark in zip(speakers, _PROBES, strict=False)]
        try:
            text = str(tokenizer.apply_chat_template(turns, tokenize=False))
        except Exception:  # a template may refuse anything; its prompts are then shown as they are
            continue
        end = 0
        for before, turn in zip((START, *speakers), turns, strict=False):
            place = text.find(turn["content"], end)
            if place < 0:
                break
            found.setdefault((before, turn["role"]), text[end:place])
            end = place + len(turn["content"])
    return found


def _split(text: str, leads: Leads) -> list[tuple[str, str]]:
    """The turns of a text that ends where an assistant's turn begins; [] if it does not."""
    stripped = {pair: lead.rstrip() for pair, lead in leads.items()}  # blanks after it may be the reply's own
    known = {pair: lead for pair, lead in stripped.items() if lead or pair[0] == START}
    first = [(role, lead) for (before, role), lead in known.items() if before == START and text.startswith(lead)]
    if not first:
        return []
    role, lead = max(first, key=lambda pair: len(pair[1]))
    turns, place = list[tuple[str, str]](), len(lead)
    while True:
        after = [(text.find(mark, place), len(mark), then) for (before, then), mark in known.items() if before == role]
        at, length, then = min((one for one in after if one[0] >= 0), default=(-1, 0, ""))
        if at < 0:
            break
        turns.append((role, text[place:at].strip()))
        role, place = then, at + length
    return turns if turns and role == ASSISTANT and not text[place:].strip() else []
