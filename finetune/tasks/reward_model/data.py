"""Rows of reward modelling as examples: pairs of replies, or single ones to be scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.table import Row
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.text.chat import ChatEncoder, Message
from finetune.tasks.text.inputs import encode_each, resolve_on_long, tokenize_texts
from finetune.tasks.text.preference_pairs import conversation_text, read_pair, read_reply


class PairEncoder:
    """Rows -> {"input_ids", "rejected_input_ids", and token_type_ids of both if the model takes them}. Picklable.

    as_pair: prompt and reply as the two texts of an encoder such as BERT; else as a conversation.
    """

    def __init__(self, tokenizer: Any, as_pair: bool, limit: int, on_long: str, system: str) -> None:
        self.tokenizer, self.as_pair, self.limit, self.on_long, self.system = tokenizer, as_pair, limit, on_long, system
        self.chat = None if as_pair else ChatEncoder(tokenizer)

    def encode(self, rows: Sequence[Row], *, with_targets: bool) -> list[dict[str, Any] | BadRow]:
        """One pair or BadRow per row. Without targets a row may hold a single reply (completion) in place of a pair."""
        read = encode_each(rows, lambda row: self._read(row, with_targets))
        replies = [reply for item in read if not isinstance(item, BadRow) for reply in item]
        on_long = resolve_on_long(self.on_long, with_targets=with_targets)
        encoded = iter(self._encode_replies(replies, on_long))
        return [item if isinstance(item, BadRow) else self._example([next(encoded) for _ in item]) for item in read]

    def _read(self, row: Row, with_targets: bool) -> list[tuple[list[Message], Message]]:
        """(conversation up to the reply, reply) for the chosen and the rejected one, or for the only one."""
        if not with_targets and (row.get("chosen") is None or row.get("rejected") is None):
            role = "completion" if row.get("completion") is not None else "chosen"
            return [read_reply(row, role, self.system)]
        before, chosen, rejected = read_pair(row, self.system)
        return [(before, chosen), (before, rejected)]

    def _encode_replies(
        self, replies: Sequence[tuple[list[Message], Message]], on_long: str
    ) -> list[dict[str, Any] | BadRow]:
        if self.chat is None:
            texts = [[conversation_text(before), reply["content"]] for before, reply in replies]
            return list(tokenize_texts(self.tokenizer, texts, self.limit, on_long))
        chat, encoded = self.chat, []
        for before, reply in replies:
            try:
                encoded.append(self._within_limit(chat.encode_whole([*before, reply]), on_long))
            except BadRow as bad:
                encoded.append(bad)
        return encoded

    def _within_limit(self, ids: list[int], on_long: str) -> dict[str, Any] | BadRow:
        if len(ids) > self.limit and on_long == "drop":
            return {"input_ids": []}
        if len(ids) > self.limit and on_long == "error":
            return BadRow(f"{len(ids)} tokens, more than options.max_length {self.limit}")
        return {"input_ids": ids[: self.limit]}

    def _example(self, replies: Sequence[dict[str, Any] | BadRow]) -> dict[str, Any] | BadRow:
        bad = next((reply for reply in replies if isinstance(reply, BadRow)), None)
        if bad is not None:
            return bad
        encoded: list[Any] = list(replies)
        if len(encoded) == 1:
            return encoded[0]
        if any(not reply["input_ids"] for reply in encoded):  # too long, to be left out
            return {"input_ids": [], "rejected_input_ids": []}
        return {**encoded[0], **{f"rejected_{key}": value for key, value in encoded[1].items()}}


def pair_encoder(artifacts: TaskArtifacts) -> PairEncoder:
    """The encoder for the artifacts' tokenizer and limits."""
    options, settings = artifacts.options, artifacts.settings
    return PairEncoder(
        artifacts.processor, settings["as_pair"], settings["max_length"], options.on_long, options.system
    )
