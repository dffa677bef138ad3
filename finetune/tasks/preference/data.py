"""Rows of preference tuning as examples: pairs of replies, or single ones with a verdict (KTO)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.table import Row
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.text.chat import ChatEncoder, Message
from finetune.tasks.text.inputs import encode_each
from finetune.tasks.text.preference_pairs import read_pair, read_prompt, read_reply


class ReplyEncoder:
    """Rows -> {"input_ids", "span": [start, end) of the reply, "rejected_input_ids", "rejected_span"}; single (KTO):
    {"input_ids", "span", "desirable": 0 or 1}. Without targets {"input_ids", "reply_start"}: the prompt, to be replied to.
    Picklable.
    """

    def __init__(self, tokenizer: Any, single: bool, limit: int, on_long: str, system: str) -> None:
        self.single, self.limit, self.on_long, self.system = single, limit, on_long, system
        self.chat = ChatEncoder(tokenizer)

    def encode(self, rows: Sequence[Row], *, with_targets: bool) -> list[dict[str, Any] | BadRow]:
        """One example or BadRow per row. Chat templates render one conversation at a time."""
        return encode_each(rows, self._example if with_targets else self._prompt)

    def _example(self, row: Row) -> dict[str, Any]:
        if self.single:
            desirable = read_verdict(row.get("label"))
            return {**self._reply(*read_reply(row, "completion", self.system)), "desirable": int(desirable)}
        before, chosen, rejected = read_pair(row, self.system)
        one, other = self._reply(before, chosen), self._reply(before, rejected)
        if not one["input_ids"] or not other["input_ids"]:
            one = other = {"input_ids": [], "span": []}
        return {**one, "rejected_input_ids": other["input_ids"], "rejected_span": other["span"]}

    def _prompt(self, row: Row) -> dict[str, Any]:
        ids = self.chat.encode_whole(read_prompt(row, self.system), prompt=True)
        if len(ids) >= self.limit:
            raise BadRow(f"the prompt has {len(ids)} tokens, longer than the limit: options.max_length {self.limit}")
        return {"input_ids": ids, "reply_start": len(ids)}

    def _reply(self, before: list[Message], reply: Message) -> dict[str, list[int]]:
        ids, spans = self.chat.encode([*before, reply])
        if not spans:
            raise BadRow("the reply holds no token")
        start, end = max(spans[-1][0], 1), spans[-1][1]
        if len(ids) > self.limit:
            if self.on_long == "drop":
                return {"input_ids": [], "span": []}
            if self.on_long == "error":
                raise BadRow(f"{len(ids)} tokens, more than options.max_length {self.limit}")
            if start >= self.limit:
                raise BadRow(f"the prompt has {start} tokens, longer than the limit: options.max_length {self.limit}")
            ids, end = ids[: self.limit], min(end, self.limit)
        return {"input_ids": ids, "span": [start, end]}


def reply_encoder(artifacts: TaskArtifacts) -> ReplyEncoder:
    """The encoder for the artifacts' tokenizer and limits."""
    options = artifacts.options
    limit = artifacts.settings["max_length"]
    return ReplyEncoder(artifacts.processor, options.loss == "kto", limit, options.on_long, options.system)


def read_verdict(label: Any) -> bool:
    """Whether a reply is desirable: true, false, 1, 0 or the words. Raises: BadRow."""
    if isinstance(label, str) and label.strip().lower() in ("true", "false"):
        return label.strip().lower() == "true"
    if label in (0, 1) and label is not None:
        return bool(label)
    raise BadRow(
        f"label {label!r} is neither true nor false" if label is not None else "no label: is the reply desirable?"
    )


def num_tokens(example: dict[str, Any]) -> int:
    """The cost of an example: of a pair, both replies padded to the longer one."""
    if "rejected_input_ids" not in example:
        return len(example["input_ids"])
    return 2 * max(len(example["input_ids"]), len(example["rejected_input_ids"]))
