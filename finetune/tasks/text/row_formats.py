r"""What a row of text data is (Alpaca, prompt and completion, conversation, plain text), as token ids with the supervised ones.

literal example, with a tokenizer whose chat template is ChatML:
    {"instruction": "Add.", "input": "1 1", "output": "2"}
    -> <|im_start|>user\\nAdd.\\n\\n1 1<|im_end|>\\n<|im_start|>assistant\\n2<|im_end|>\\n
       supervised:                                                        ^^^^^^^^^^^
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from finetune.data.bad_rows import BadRow, BadValue
from finetune.data.table import Row
from finetune.errors import UserError
from finetune.tasks.text.chat import EMPTY, chat_encoder
from finetune.tasks.text.conversations import (
    Conversation,
    Turns,
    holds_messages,
    is_empty,
    messages_texts,
    read_turns,
    text_turns,
)
from finetune.tasks.text.drafts import Draft, Tokens, encode_drafts, tokenize
from finetune.tasks.text.learned_turns import to_learn
from finetune.tasks.text.reply_limits import OPENING_TOKENS, prompt_example, within_limit
from finetune.tasks.text.row_values import (
    check_text_only,
    read_history,
    reply_calls,
    row_string,
    row_tools,
    turn_notices,
    with_system,
)
from finetune.tasks.text.tool_calls import Tool

_KEYS = {"messages": ("messages",), "alpaca": ("instruction", "output"), "prompt_completion": ("prompt", "completion")}
_BESIDE = ("system", "tools", "functions")  # read beside a conversation of any form
_READ = {
    "messages": ("messages", *_BESIDE),
    "alpaca": ("instruction", "input", "output", "history", *_BESIDE),
    "prompt_completion": ("prompt", "completion", "history", *_BESIDE),
    "text": ("text",),
}


def form_of(row: Row, *, with_reply: bool = True) -> str:
    """One of "messages", "alpaca", "prompt_completion" or "text", by the roles that the row has.

    with_reply: the role of the reply (output, completion) must be there as well. Raises: BadRow.
    """
    for form, roles in _KEYS.items():
        needed = roles if with_reply else roles[:1]
        if all(row.get(role) is not None for role in needed):
            return form
    if row.get("text") is not None:
        return "text"
    have = [key for key in row if row[key] is not None]
    listed = ", ".join(["{}"] * len(have)) or "nothing"
    raise BadValue(
        f"neither messages, nor instruction and output, nor prompt and completion, nor text; it has {listed}", *have
    )


def row_texts(row: Row, form: str) -> Iterator[str]:
    """The texts of a row, bare, to train a tokenizer on; nothing of a row that cannot be used."""
    try:
        kind = form_of(row) if form == "auto" else form
        if kind == "messages":
            yield from messages_texts(to_learn(read_turns(row["messages"])).messages)
        elif kind == "prompt_completion" and (holds_messages(row["prompt"]) or holds_messages(row["completion"])):
            for role, speaker in (("prompt", "user"), ("completion", "assistant")):
                yield from messages_texts(_turns_or_text(row, role, speaker).messages)
        else:
            roles = {"text": ("text",), "alpaca": ("instruction", "input", "output")}.get(
                kind, ("prompt", "completion")
            )
            yield from (str(row[role]) for role in roles if row.get(role))
            yield from messages_texts(read_history(row).messages)
    except (BadRow, KeyError):
        return


class RowEncoder:
    """A row -> {"input_ids": [...], "spans": [start, end, start, end, ...], "reply_start": position}; picklable.

    spans: of tokens to learn, never empty, from position 1 on. reply_start: where the last reply begins. A row that is cut
    has "reference", too, unless it is plain text or no reply begins within the limit: the tokens of that reply in full. So
    has one whose last reply other turns follow (train_on: all).
    own_template: the chat template came with the tokenizer, so that prompts and completions are turns of a conversation.
    tools: schemas for conversations that have none of their own.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        form: str,
        own_template: bool,
        system: str,
        train_on: str,
        limit: int,
        on_long: str,
        tools: Sequence[Tool] = (),
    ) -> None:
        self.tokenizer, self.form, self.own_template = tokenizer, form, own_template
        self.system, self.train_on, self.limit, self.on_long, self.tools = system, train_on, limit, on_long, tools

    @property
    def settings(self) -> list[Any]:
        """Everything but the tokenizer that the result depends on."""
        return [self.form, self.own_template, self.system, self.train_on, self.limit, self.on_long, list(self.tools)]

    def encode(self, rows: Sequence[Row], *, with_targets: bool = True) -> list[dict[str, Any] | BadRow]:
        """One example or BadRow per row. Without targets {"input_ids", "reply_start": their number}: what the model is
        given to reply to. Of a conversation that ends with a reply, that is everything before it.
        """
        if with_targets:
            return encode_drafts(self.tokenizer, rows, self._draft, self._finish)
        return encode_drafts(self.tokenizer, rows, self._draft_prompt, self._finish_prompt)

    def roles_read(self, row: Row) -> tuple[str, ...]:
        """The roles that a row of its form is made of; others that it has are not used. () for a bad row."""
        try:
            form = self._form(row)
            return ("prompt", "completion") if self._is_verbatim(row, form) else _READ[form]
        except BadRow:
            return ()

    def _form(self, row: Row, *, with_reply: bool = True) -> str:
        return form_of(row, with_reply=with_reply) if self.form == "auto" else self.form

    def _draft(self, row: Row) -> list[Draft]:
        form = self._form(row)
        if form == "text":
            text = row_string(row, "text")
            if not text.strip():
                raise BadRow("text is empty", kind="empty")
            return [Draft(text, [(0, len(text))], special=True, finished=True, notices=turn_notices(row))]
        check_text_only(row)
        if self._is_verbatim(row, form):
            prompt, completion = row_string(row, "prompt"), row_string(row, "completion")
            whole = prompt + completion
            if not completion.strip():
                raise BadRow(EMPTY)
            return [Draft(whole, [(len(prompt), len(whole))], special=True, finished=True)]
        conversation = self._conversation(row, form)
        return [chat_encoder(self.tokenizer).draft(conversation, whole=self.train_on == "all")]

    def _finish(self, row: Row, tokens: Sequence[Tokens]) -> dict[str, Any]:
        """Raises: BadRow if the row holds nothing to learn, or nothing within the limit."""
        ids, spans, reply_start, find_replies = tokens[0].ids, tokens[0].spans, tokens[0].reply_start, None
        if self._form(row) == "text":
            reply_start = min(OPENING_TOKENS, len(ids) // 2)
        if self.train_on == "all" or self._form(row) == "text":
            spans, find_replies = [(0, len(ids))], partial(self._replies, row, ids)
        reply = max(1, reply_start), tokens[0].reply_end or len(ids)
        example = within_limit(ids, spans, reply, self.limit, self.on_long, find_replies)
        if self._form(row) == "text":
            example.pop("reference", None)  # a document goes on for long, and is not stored twice
        return example

    def _replies(self, row: Row, ids: list[int]) -> Sequence[tuple[int, int]]:
        """The tokens of each reply of a row that is learned whole; () for text, and a template that hides its replies."""
        form = self._form(row)
        if form == "text" or self._is_verbatim(row, form):
            return ()
        try:
            (found,) = tokenize(self.tokenizer, [chat_encoder(self.tokenizer).draft(self._conversation(row, form))])
        except (BadRow, UserError):
            return ()
        return found.spans if isinstance(found, Tokens) and found.ids[: self.limit] == ids[: self.limit] else ()

    def _draft_prompt(self, row: Row) -> list[Draft]:
        form = self._form(row, with_reply=False)
        if form != "text":
            check_text_only(row)
        if form == "text" or self._is_verbatim(row, form):
            text = row_string(row, "text" if form == "text" else "prompt")
            if not text.strip():
                raise BadRow("the prompt is empty", kind="empty")
            return [Draft(text, special=True)]
        return [chat_encoder(self.tokenizer).draft_prompt(self._prompt_conversation(row, form))]

    def _finish_prompt(self, row: Row, tokens: Sequence[Tokens]) -> dict[str, Any]:
        return prompt_example(tokens[0].ids, self.limit)

    def _is_verbatim(self, row: Row, form: str) -> bool:
        """Whether prompt and completion are used as they are: texts, and no template that came with the tokenizer."""
        if form != "prompt_completion" or self.own_template:
            return False
        if holds_messages(row.get("prompt")) or holds_messages(row.get("completion")):
            return False
        for role in ("history", "tools"):
            if row.get(role) not in (None, "", [], "[]"):
                reason = "{} cannot be used with prompt and completion as text: this needs a chat template, or the "
                raise BadValue(reason + "columns instruction and output", role)
        return True

    def _conversation(self, row: Row, form: str) -> Conversation:
        notices: list[str] = []
        tools = row_tools(row, self.tools, notices, strict=form == "messages")
        first = 0
        if form == "messages":
            turns = read_turns(_present(row, "messages"))
        elif form == "alpaca":
            turns = self._asked(row)
            turns.extend(reply_calls(row, "output", tools) or text_turns("assistant", row_string(row, "output")))
        else:
            turns = read_history(row)
            turns.extend(_turns_or_text(row, "prompt", "user"))
            first = len(turns.messages) if holds_messages(row.get("prompt")) else 0
            turns.extend(_turns_or_text(row, "completion", "assistant"))
        if form != "messages" and is_empty(turns.messages[-1]):
            raise BadRow(EMPTY)
        added = with_system(row, self.system, turns)
        turns.notices += notices
        return to_learn(turns, tools, first=first + added, whole=self.train_on == "all")

    def _prompt_conversation(self, row: Row, form: str) -> Conversation:
        notices: list[str] = []
        tools = row_tools(row, self.tools, notices, strict=form == "messages")
        if form == "messages":
            turns = read_turns(_present(row, "messages"))
            if turns.messages and turns.messages[-1]["role"] == "assistant":
                del turns.messages[-1], turns.marks[-1]
        elif form == "alpaca":
            turns = self._asked(row)
        else:
            turns = read_history(row)
            turns.extend(_turns_or_text(row, "prompt", "user"))
        if not turns.messages or is_empty(turns.messages[-1]):
            raise BadRow("the prompt is empty", kind="empty")
        with_system(row, self.system, turns)
        return Conversation(turns.messages, tools=tools, notices=(*turns.notices, *notices))

    def _asked(self, row: Row) -> Turns:
        """Earlier turns, and the instruction with its input."""
        instruction = row_string(row, "instruction")
        given = row_string(row, "input") if row.get("input") is not None else ""
        if given.strip():
            heading = "" if self.own_template else "### Input:\n"
            instruction = f"{instruction}\n\n{heading}{given}"
        turns = read_history(row)
        turns.extend(text_turns("user", instruction))
        return turns


def _turns_or_text(row: Row, role: str, speaker: str) -> Turns:
    """The messages under a role, or its text as one turn of `speaker`."""
    if holds_messages(row.get(role)):
        return read_turns(row[role], role)
    return text_turns(speaker, row_string(row, role))


def _present(row: Row, role: str) -> Any:
    if row.get(role) is None:
        raise BadValue("no {}", role)
    return row[role]
