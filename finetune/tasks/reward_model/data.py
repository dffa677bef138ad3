"""Rows of reward modelling as examples: pairs of replies, or single ones to be scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.table import Row
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.text.chat import ChatEncoder, chat_encoder
from finetune.tasks.text.conversations import Conversation
from finetune.tasks.text.drafts import Draft, Tokens, tokenize
from finetune.tasks.text.inputs import (
    cut_notice,
    encode_each,
    is_cut_notice,
    resolve_on_long,
    shortened,
    tokenize_texts,
)
from finetune.tasks.text.limits import limit_name, limit_of
from finetune.tasks.text.preference_pairs import (
    Reply,
    equal_after_cut,
    message_text,
    prompt_notice,
    read_pair,
    read_reply,
)
from finetune.tasks.text.tool_calls import Tool

SHOWN_TURNS = 8  # of a conversation, the last ones


class PairEncoder:
    """Rows -> {"input_ids", "rejected_input_ids", and token_type_ids of both if the model takes them}. Picklable.

    as_pair: prompt and reply as the two texts of an encoder such as BERT; else as a conversation. A pair whose replies are
    equal within `limit` is left out (input_ids []), with a notice.
    """

    def __init__(
        self, tokenizer: Any, as_pair: bool, limit: int, on_long: str, system: str, tools: Sequence[Tool] = ()
    ) -> None:
        self.tokenizer, self.as_pair, self.limit, self.on_long = tokenizer, as_pair, limit, on_long
        self.system, self.tools = system, tools

    @property
    def settings(self) -> list[Any]:
        """Everything but the tokenizer that the result depends on."""
        return [self.as_pair, self.limit, self.on_long, self.system, list(self.tools)]

    def encode(self, rows: Sequence[Row], *, with_targets: bool) -> list[dict[str, Any] | BadRow]:
        """One pair or BadRow per row. Without targets a row may hold a single reply (completion) in place of a pair."""
        on_long = resolve_on_long(self.on_long, with_targets=with_targets)
        read = encode_each(rows, lambda row: self.read(row, with_targets))
        replies = [reply for item in read if not isinstance(item, BadRow) for reply in item]
        encoded = iter(self._encode_replies(replies, on_long))
        examples: list[dict[str, Any] | BadRow] = []
        for item in read:
            if isinstance(item, BadRow):
                examples.append(item)
                continue
            try:
                examples.append(self._example(item, [next(encoded) for _ in item]))
            except BadRow as bad:
                examples.append(bad)
        return examples

    def read(self, row: Row, with_targets: bool) -> list[Reply]:
        """The chosen and the rejected reply, or the only one. Raises: BadRow."""
        if not with_targets and (row.get("chosen") is None or row.get("rejected") is None):
            role = "completion" if row.get("completion") is not None else "chosen"
            return [read_reply(row, role, self.system, self.tools)]
        return list(read_pair(row, self.system, self.tools))

    def shown(self, row: Row) -> dict[str, Any]:
        """{"turns": [[role, words]] before the replies, "chosen", "rejected"}: the beginning of each as it is written."""
        chosen, rejected = self.read(row, with_targets=True)
        turns = [[message["role"], shortened(message_text(message))] for message in chosen.before]
        if len(turns) > SHOWN_TURNS:
            turns = [["earlier", f"{len(turns) - SHOWN_TURNS} turns are not shown"], *turns[-SHOWN_TURNS:]]
        texts = (shortened(message_text(reply.message)) for reply in (chosen, rejected))
        return {"turns": turns, **dict(zip(("chosen", "rejected"), texts, strict=True))}

    def _encode_replies(self, replies: Sequence[Reply], on_long: str) -> list[dict[str, Any] | BadRow]:
        """{"input_ids", ..., "notices"} of each, or a BadRow."""
        if self.as_pair:
            encoded = tokenize_texts(self.tokenizer, [reply.texts for reply in replies], self.limit, on_long)
            return [
                item if isinstance(item, BadRow) else {**item, "notices": [*reply.notices, *item.get("notices", ())]}
                for reply, item in zip(replies, encoded, strict=True)
            ]
        chat = chat_encoder(self.tokenizer)
        drafts = [self._draft(chat, reply) for reply in replies]
        tokens = iter(tokenize(self.tokenizer, [draft for draft in drafts if isinstance(draft, Draft)]))
        found = [draft if isinstance(draft, BadRow) else next(tokens) for draft in drafts]
        return [item if isinstance(item, BadRow) else self._within_limit(item, on_long) for item in found]

    def _draft(self, chat: ChatEncoder, reply: Reply) -> Draft | BadRow:
        try:
            return chat.draft(reply.conversation, whole=True)
        except BadRow as bad:
            return bad

    def _within_limit(self, tokens: Tokens, on_long: str) -> dict[str, Any] | BadRow:
        ids, notices = tokens.ids, list(tokens.notices)
        if len(ids) > self.limit and on_long == "drop":
            return {"input_ids": [], "notices": notices}
        if len(ids) > self.limit and on_long == "error":
            return BadRow(f"{len(ids)} tokens, more than {limit_name(self.limit)} {self.limit}", kind="too_long")
        if len(ids) > self.limit:
            notices.append(cut_notice(self.limit, what="conversation"))
        return {"input_ids": ids[: self.limit], "notices": notices}

    def _example(self, replies: Sequence[Reply], encoded: Sequence[dict[str, Any] | BadRow]) -> dict[str, Any]:
        usable = []
        for item in encoded:
            if isinstance(item, BadRow):
                raise item
            usable.append(item)
        if len(usable) == 1:
            return usable[0]
        notices = list(dict.fromkeys(notice for item in usable for notice in item.pop("notices")))
        one, other = (item["input_ids"] for item in usable)
        if one and list(one) == list(other):
            whole = [self._whole_ids(reply) for reply in replies]
            equal = equal_after_cut(one, other, whole, self.limit)
            # Of a pair of texts, the longer one is cut first: its prompt leaves room.
            fills = not self.as_pair and self._prompt_fills(replies[0])
            notices += [prompt_notice(self.limit)] if fills else equal
            one = []
        elif (not one or not other) and self._prompt_fills(replies[0]):
            notices.append(prompt_notice(self.limit))
        if not one or not other:  # too long or without a difference, to be left out
            notices = [notice for notice in notices if not is_cut_notice(notice)]
            return {"input_ids": [], "rejected_input_ids": [], "notices": notices}
        rejected = {f"rejected_{key}": value for key, value in usable[1].items()}
        return {**usable[0], **rejected, "notices": notices}

    def _prompt_fills(self, reply: Reply) -> bool:
        """Whether what comes before a reply takes all tokens."""
        if self.as_pair:
            return len(self.tokenizer(reply.texts[0], verbose=False)["input_ids"]) >= self.limit
        try:
            draft = chat_encoder(self.tokenizer).draft_prompt(Conversation(reply.before, tools=reply.tools))
        except BadRow:  # such as a template that does not take turns of the assistant at their end
            return False
        tokens = tokenize(self.tokenizer, [draft])[0]
        return isinstance(tokens, Tokens) and len(tokens.ids) >= self.limit

    def _whole_ids(self, reply: Reply) -> list[int]:
        """All tokens of a reply and what comes before it."""
        if self.as_pair:
            return list(self.tokenizer(*reply.texts, verbose=False)["input_ids"])
        tokens = tokenize(self.tokenizer, [chat_encoder(self.tokenizer).draft(reply.conversation, whole=True)])[0]
        return tokens.ids if isinstance(tokens, Tokens) else []


def pair_encoder(artifacts: TaskArtifacts) -> PairEncoder:
    """The encoder for the artifacts' tokenizer and limits."""
    options, settings = artifacts.options, artifacts.settings
    return PairEncoder(
        artifacts.processor,
        settings["as_pair"],
        limit_of(artifacts),
        options.on_long,
        options.system,
        settings.get("tools", ()),
    )


def pair_cost(example: dict[str, Any]) -> int:
    """Tokens of a pair, both padded to the longer one."""
    return 2 * max(len(example["input_ids"]), len(example["rejected_input_ids"]))
