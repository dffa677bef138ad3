"""Rows that say which reply is better: a prompt with a chosen and a rejected reply, however they are written.

{"prompt": "Hi", "chosen": "Good day.", "rejected": "What?"}
{"messages": [{"from": "human", "value": "Hi"}], "chosen": {"from": "gpt", "value": "Good day."}, "rejected": {...}}
{"chosen": [{"role": "user", ...}, {"role": "assistant", ...}], "rejected": [...]}      the prompt is in both
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from finetune.data.bad_rows import BadRow
from finetune.data.table import Row, Table
from finetune.tasks.text.chat import Message, normalize_turns

COLUMNS = {
    "prompt": "The prompt: text, or a list of role and content.",
    "messages": "The conversation before the reply: a list of role and content (or from and value).",
    "chosen": "The preferred reply: text, a message, or the whole conversation.",
    "rejected": "The other reply, in the same format.",
    "system": "System prompt of this row.",
}
PROMPTS = ("prompt", "messages", "chosen")


def read_pair(row: Row, system: str = "") -> tuple[list[Message], Message, Message]:
    """(conversation up to the reply, chosen reply, rejected reply). Raises: BadRow."""
    before, chosen = read_reply(row, "chosen", system)
    other, rejected = read_reply(row, "rejected", system)
    if before != other:
        raise BadRow("chosen and rejected answer different prompts")
    if chosen["content"] == rejected["content"]:
        raise BadRow("chosen and rejected are the same")
    return before, chosen, rejected


def read_reply(row: Row, role: str, system: str = "") -> tuple[list[Message], Message]:
    """(conversation up to the reply, the reply) for the reply under `role`. Raises: BadRow."""
    value = row.get(role)
    if value is None:
        raise BadRow(f"no {role}")
    if isinstance(value, str) and not value.lstrip().startswith("[{"):
        turns = [{"role": "assistant", "content": value}]
    else:
        turns = normalize_turns([value] if isinstance(value, Mapping) else value)
    if not turns or turns[-1]["role"] != "assistant":
        raise BadRow(f"{role} does not end with a reply of the assistant")
    if not turns[-1]["content"].strip():
        raise BadRow(f"{role} is empty")
    before = turns[:-1] or _prompt(row)
    system = str(row.get("system") or system)
    if system and before[0]["role"] != "system":
        before = [{"role": "system", "content": system}, *before]
    return before, turns[-1]


def read_prompt(row: Row, system: str = "") -> list[Message]:
    """The conversation to reply to, without any reply. Raises: BadRow."""
    before = _prompt(row)
    system = str(row.get("system") or system)
    return [{"role": "system", "content": system}, *before] if system and before[0]["role"] != "system" else before


def _prompt(row: Row) -> list[Message]:
    value = row["prompt"] if row.get("prompt") is not None else row.get("messages")
    if value is None:
        raise BadRow("no prompt")
    if isinstance(value, str) and not value.lstrip().startswith("[{"):
        value = [{"role": "user", "content": value}]
    turns = normalize_turns([value] if isinstance(value, Mapping) else value)
    if not turns or not turns[-1]["content"].strip():
        raise BadRow("the prompt is empty")
    if turns[-1]["role"] == "assistant":
        raise BadRow("the prompt ends with a reply of the assistant: there is nothing to reply to")
    return turns


def pair_texts(table: Table, replies: tuple[str, ...] = ("chosen", "rejected")) -> Iterator[str]:
    """Texts, bare, for a tokenizer that is trained on them; nothing of a row that cannot be used."""
    for row in table:
        for position, role in enumerate(replies):
            try:
                before, reply = read_reply(row, role)
            except (BadRow, KeyError, IndexError):
                continue
            yield from (turn["content"] for turn in ([] if position else before))
            yield reply["content"]


def conversation_text(messages: list[Message]) -> str:
    """A conversation as plain text, for tokenizers without turns."""
    return "\n\n".join(message["content"] for message in messages)
