r"""What a row of text data is (Alpaca, prompt and completion, conversation, plain text), as token ids with the supervised ones.

literal example, with a tokenizer whose chat template is ChatML:
    {"instruction": "Add.", "input": "1 1", "output": "2"}
    -> <|im_start|>user\\nAdd.\\n\\n1 1<|im_end|>\\n<|im_start|>assistant\\n2<|im_end|>\\n
       supervised:                                                        ^^^^^^^^^^^
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.table import Row
from finetune.tasks.text.chat import ChatEncoder, Message, Span, normalize_messages, normalize_turns, token_spans

_KEYS = {"messages": ("messages",), "alpaca": ("instruction", "output"), "prompt_completion": ("prompt", "completion")}
OPENING_TOKENS = 32  # of plain text, from which a sample is continued


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
    have = ", ".join(key for key in row if row[key] is not None)
    raise BadRow(f"neither messages, nor instruction and output, nor prompt and completion, nor text; it has {have}")


def row_texts(row: Row, form: str) -> Iterator[str]:
    """The texts of a row, bare, to train a tokenizer on; nothing of a row that cannot be used."""
    try:
        kind = form_of(row) if form == "auto" else form
        if kind == "messages":
            yield from (message["content"] for message in normalize_messages(row["messages"]))
        else:
            roles = {"text": ("text",), "alpaca": ("instruction", "input", "output")}.get(
                kind, ("prompt", "completion")
            )
            yield from (str(row[role]) for role in roles if row.get(role))
    except (BadRow, KeyError):
        return


class RowEncoder:
    """A row -> {"input_ids": [...], "spans": [start, end, start, end, ...], "reply_start": position}; picklable.

    spans: of tokens to learn, never empty, from position 1 on. reply_start: where the last reply begins.
    own_template: the chat template came with the tokenizer, so that prompts and completions are turns of a conversation.
    """

    def __init__(
        self, tokenizer: Any, *, form: str, own_template: bool, system: str, train_on: str, limit: int, on_long: str
    ) -> None:
        self.tokenizer, self.form, self.own_template = tokenizer, form, own_template
        self.system, self.train_on, self.limit, self.on_long = system, train_on, limit, on_long
        self.chat = ChatEncoder(tokenizer)

    @property
    def settings(self) -> list[Any]:
        """Everything but the tokenizer that the result depends on."""
        return [self.form, self.own_template, self.system, self.train_on, self.limit, self.on_long]

    def __call__(self, row: Row) -> dict[str, Any]:
        """Raises: BadRow if the row holds nothing to learn, or nothing within the limit."""
        form = form_of(row) if self.form == "auto" else self.form
        if form == "text":
            ids, spans = self._text(_string(row, "text"))
        elif form == "prompt_completion" and not self.own_template:
            ids, spans = self._verbatim(_string(row, "prompt"), _string(row, "completion"))
        else:
            ids, spans = self._conversation(self._messages(row, form))
        reply_start = min(OPENING_TOKENS, len(ids) // 2) if form == "text" else spans[-1][0] if spans else 0
        if self.train_on == "all":
            spans = [(0, len(ids))]
        return self._within_limit(ids, spans, max(1, reply_start))

    def encode_prompt(self, row: Row) -> dict[str, Any]:
        """What the model is given to reply to: {"input_ids", "reply_start": their number}. Needs no reply in the row.

        Of a conversation that ends with a reply, everything before that reply. Raises: BadRow.
        """
        form = form_of(row, with_reply=False) if self.form == "auto" else self.form
        if form == "text":
            ids = self._prompt_ids(_string(row, "text"))
        elif form == "prompt_completion" and not self.own_template:
            ids = self._prompt_ids(_string(row, "prompt"))
        else:
            ids = self.chat.encode_whole(self._prompt_messages(row, form), prompt=True)
        if len(ids) >= self.limit:
            raise BadRow(f"the prompt has {len(ids)} tokens, longer than the limit: options.max_length {self.limit}")
        return {"input_ids": ids, "reply_start": len(ids)}

    def _prompt_ids(self, text: str) -> list[int]:
        ids = list(self.tokenizer(text, verbose=False)["input_ids"]) if text.strip() else []
        if not ids:
            raise BadRow("the prompt is empty")
        return ids

    def _prompt_messages(self, row: Row, form: str) -> list[Message]:
        if form == "messages":
            messages = normalize_turns(row["messages"]) if row.get("messages") is not None else _missing("messages")
            if messages and messages[-1]["role"] == "assistant":
                messages = messages[:-1]
        else:
            asked = self._asked(row) if form == "alpaca" else _string(row, "prompt")
            messages = [{"role": "user", "content": asked}]
        if not messages or not messages[-1]["content"].strip():
            raise BadRow("the prompt is empty")
        return self._with_system(row, messages)

    def _conversation(self, messages: list[Message]) -> tuple[list[int], list[Span]]:
        if self.train_on == "reply":
            return self.chat.encode(messages)
        ids = self.chat.encode_whole(messages)  # needs no mask, so any template will do
        return ids, [(min(len(self.chat.encode_whole(messages[:-1], prompt=True)), len(ids)), len(ids))]

    def _within_limit(self, ids: list[int], spans: list[Span], reply_start: int) -> dict[str, Any]:
        supervised = [(max(start, 1), end) for start, end in spans if end > max(start, 1)]
        if not supervised:
            raise BadRow("the reply is empty: there is nothing to learn")
        if len(ids) > self.limit:
            if self.on_long == "drop":
                return {"input_ids": [], "spans": [], "reply_start": 0}
            if self.on_long == "split":
                return {
                    "input_ids": ids,
                    "spans": [edge for span in supervised for edge in span],
                    "reply_start": min(reply_start, self.limit - 1),
                }
            if self.on_long == "error":
                raise BadRow(f"{len(ids)} tokens, more than options.max_length {self.limit}")
            if supervised[0][0] >= self.limit:
                raise BadRow(
                    f"the prompt has {supervised[0][0]} tokens, longer than the limit: options.max_length {self.limit}"
                )
            supervised = [(start, min(end, self.limit)) for start, end in supervised if start < self.limit]
            ids, reply_start = ids[: self.limit], min(reply_start, supervised[-1][0])
        return {"input_ids": ids, "spans": [edge for span in supervised for edge in span], "reply_start": reply_start}

    def _messages(self, row: Row, form: str) -> list[Message]:
        if form == "messages":
            messages = normalize_messages(row["messages"]) if row.get("messages") is not None else _missing("messages")
        elif form == "alpaca":
            messages = _turns(self._asked(row), _string(row, "output"))
        else:
            messages = _turns(_string(row, "prompt"), _string(row, "completion"))
        return self._with_system(row, messages)

    def _with_system(self, row: Row, messages: list[Message]) -> list[Message]:
        system = str(row.get("system") or self.system)
        if system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": system}, *messages]
        return messages

    def _asked(self, row: Row) -> str:
        instruction, given = _string(row, "instruction"), str(row.get("input") or "")
        if not given.strip():
            return instruction
        return f"{instruction}\n\n{given}" if self.own_template else f"{instruction}\n\n### Input:\n{given}"

    def _text(self, text: str) -> tuple[list[int], list[Span]]:
        if not text.strip():
            raise BadRow("text is empty")
        ids = self._closed(list(self.tokenizer(text, verbose=False)["input_ids"]))
        return ids, [(0, len(ids))]

    def _verbatim(self, prompt: str, completion: str) -> tuple[list[int], list[Span]]:
        text = prompt + completion
        encoded = self.tokenizer(text, return_offsets_mapping=True, verbose=False)
        spans = token_spans(encoded["offset_mapping"], [(len(prompt), len(text))])
        ids = self._closed(list(encoded["input_ids"]))
        return ids, [(spans[0][0], len(ids))] if spans else []

    def _closed(self, ids: list[int]) -> list[int]:
        """Ended by the end-of-text token, once."""
        eos = self.tokenizer.eos_token_id
        return ids if eos is None or (ids and ids[-1] == eos) else [*ids, eos]


def _turns(asked: str, reply: str) -> list[Message]:
    if not reply.strip():
        raise BadRow("the reply is empty: there is nothing to learn")
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": reply}]


def _string(row: Row, role: str) -> str:
    value = row.get(role)
    if value is None:
        _missing(role)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise BadRow(f"{role} is {type(value).__name__}, not text")
    return str(value)


def _missing(role: str) -> Any:
    raise BadRow(f"no {role}")
