"""Rows of preference tuning as examples: pairs of replies, or single ones with a verdict (KTO)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.prepare.notices import KEY as NOTICES
from finetune.data.table import Row
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.text.chat import chat_encoder
from finetune.tasks.text.drafts import Draft, Tokens, encode_drafts
from finetune.tasks.text.inputs import cut_notice
from finetune.tasks.text.limits import limit_name, limit_of
from finetune.tasks.text.preference_pairs import equal_after_cut, prompt_notice, read_pair, read_prompt, read_reply
from finetune.tasks.text.reply_limits import prompt_example
from finetune.tasks.text.tool_calls import Tool


class ReplyEncoder:
    """Rows -> {"input_ids", "span": [start, end) of the reply, "rejected_input_ids", "rejected_span"}; single (KTO):
    {"input_ids", "span", "desirable": 0 or 1}. Without targets {"input_ids", "reply_start"}: the prompt, to be replied to.
    Picklable.

    A pair whose replies are equal within `limit` is left out (input_ids []), with a notice.
    """

    def __init__(
        self, tokenizer: Any, single: bool, limit: int, on_long: str, system: str, tools: Sequence[Tool] = ()
    ) -> None:
        self.tokenizer, self.single, self.limit, self.on_long = tokenizer, single, limit, on_long
        self.system, self.tools = system, tools

    @property
    def settings(self) -> list[Any]:
        """Everything but the tokenizer that the result depends on."""
        return [self.single, self.limit, self.on_long, self.system, list(self.tools)]

    def encode(self, rows: Sequence[Row], *, with_targets: bool) -> list[dict[str, Any] | BadRow]:
        """One example or BadRow per row. All rows are rendered first, then tokenized together."""
        if with_targets:
            return encode_drafts(self.tokenizer, rows, self._drafts, self._example)
        return encode_drafts(self.tokenizer, rows, self._draft_prompt, self._prompt)

    def _drafts(self, row: Row) -> list[Draft]:
        chat = chat_encoder(self.tokenizer)
        if self.single:
            read_verdict(row.get("label"))
            return [chat.draft(read_reply(row, "completion", self.system, self.tools).conversation)]
        return [chat.draft(reply.conversation) for reply in read_pair(row, self.system, self.tools)]

    def _example(self, row: Row, tokens: Sequence[Tokens]) -> dict[str, Any]:
        if self.single:
            return {**self._reply(tokens[0]), "desirable": int(read_verdict(row.get("label")))}
        one, other = (self._reply(each) for each in tokens)
        notices = equal_after_cut(one["input_ids"], other["input_ids"], [each.ids for each in tokens], self.limit)
        if notices or not one["input_ids"] or not other["input_ids"]:  # left out: what else is said of it is void
            why = [notice for reply in (one, other) if not reply["input_ids"] for notice in reply.get(NOTICES, ())]
            one = other = {"input_ids": [], "span": [], NOTICES: why}
        notices += dict.fromkeys([*one.get(NOTICES, ()), *other.get(NOTICES, ())])
        return {
            **one,
            "rejected_input_ids": other["input_ids"],
            "rejected_span": other["span"],
            NOTICES: notices,
        }

    def _draft_prompt(self, row: Row) -> list[Draft]:
        return [chat_encoder(self.tokenizer).draft_prompt(read_prompt(row, self.system, self.tools))]

    def _prompt(self, row: Row, tokens: Sequence[Tokens]) -> dict[str, Any]:
        return prompt_example(tokens[0].ids, self.limit)

    def _reply(self, tokens: Tokens) -> dict[str, list[Any]]:
        ids, spans, cuts = tokens.ids, tokens.spans, list[str]()
        if not spans:
            raise BadRow("the reply holds no token", kind="empty")
        start, end = max(spans[0][0], 1), spans[-1][1]
        if len(ids) > self.limit:
            if self.on_long == "drop":
                why = [prompt_notice(self.limit)] if start >= self.limit else []
                return {"input_ids": [], "span": [], NOTICES: why}
            if self.on_long == "error":
                raise BadRow(f"{len(ids)} tokens, more than {limit_name(self.limit)} {self.limit}", kind="too_long")
            if start >= self.limit:
                raise BadRow(
                    f"the prompt has {start} tokens, longer than the limit: {limit_name(self.limit)} {self.limit}",
                    kind="too_long",
                )
            ids, end = ids[: self.limit], min(end, self.limit)
            cuts = [cut_notice(self.limit, what="conversation")]
        return {"input_ids": ids, "span": [start, end], **({NOTICES: cuts} if cuts else {})}


def reply_encoder(artifacts: TaskArtifacts) -> ReplyEncoder:
    """The encoder for the artifacts' tokenizer and limits."""
    options, settings = artifacts.options, artifacts.settings
    return ReplyEncoder(
        artifacts.processor,
        options.loss == "kto",
        limit_of(artifacts),
        options.on_long,
        options.system,
        settings.get("tools", ()),
    )


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
