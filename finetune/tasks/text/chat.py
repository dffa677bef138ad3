"""Conversations: normalized, rendered by any chat template, and marked where the assistant speaks.

The supervised part of an assistant's turn is what the model must produce itself: from where the generation prompt ends, through
the reply, to the end-of-turn mark.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.values import check_text
from finetune.errors import UserError

Message = dict[str, Any]
Span = tuple[int, int]  # [start, end), in characters of a text or in tokens

_ROLES = {
    **dict.fromkeys(("user", "human", "question"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt", "answer"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "observation", "function", "ipython"), "tool"),
}
_STAND_IN = "\ue000reply\ue001"  # private-use characters: no reply begins or ends with them, no template trims them
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

# For a tokenizer without a chat template: the layout of Stanford Alpaca, each reply ended by the end-of-text token.
PLAIN_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\\n\\n' }}"
    "{% else %}{{ 'Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\\n\\n' }}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{{ '\\n\\n' if not loop.last }}"
    "{% elif message['role'] != 'system' %}"
    "{{ '### Instruction:\\n' + message['content'] + '\\n\\n### Response:\\n' }}"
    "{% endif %}{% endfor %}"
)


def normalize_messages(value: Any) -> list[Message]:
    """As normalize_turns; what follows the last assistant turn is dropped, because it has no supervised tokens."""
    messages = normalize_turns(value)
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if not messages:
        raise BadRow("no assistant turn to learn from")
    return messages


def normalize_turns(value: Any) -> list[Message]:
    """[{"from": "human", "value": "Hi"}, ...] or [{"role": "user", "content": "Hi"}, ...] -> the latter.

    JSON text is read; content given as text parts is joined. Raises: BadRow.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise BadRow(f"messages are neither a list nor JSON: {error}") from error
        check_text(value, "messages")  # JSON inside of a text was not looked through when the file was read
    if not isinstance(value, (list, tuple)):
        raise BadRow(f"messages are a list of role and content, not {type(value).__name__}")
    return [_normalize(message, index) for index, message in enumerate(value)]


def _normalize(message: Any, index: int) -> Message:
    if not isinstance(message, Mapping):
        raise BadRow(f"message {index + 1} is {type(message).__name__}, not a mapping of role and content")
    role = message.get("role", message.get("from"))
    if str(role).lower() not in _ROLES:
        raise BadRow(f"message {index + 1} has the role {role!r}; known: {', '.join(_ROLES)}")
    content = message.get("content", message.get("value"))
    if isinstance(content, (list, tuple)):
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))
    if content is None and message.get("tool_calls"):
        content = ""
    if not isinstance(content, str):
        raise BadRow(f"message {index + 1} has no content")
    rest = {key: item for key, item in message.items() if key not in _NAMES and item is not None}
    return {"role": _ROLES[str(role).lower()], "content": content, **rest}


_NAMES = frozenset({"role", "content", "from", "value"})


class ChatEncoder:
    """Conversation -> token ids and the spans of tokens to learn. Picklable.

    Templates with {% generation %} marks are taken at their word; with any other, each reply is found by rendering the
    conversation once more with a stand-in for it: what changes is the reply.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.marked = bool(_GENERATION.search(tokenizer.chat_template))
        self.takes_system = self._takes_system()

    def encode(self, messages: Sequence[Message]) -> tuple[list[int], list[Span]]:
        """(ids, spans of supervised tokens). Raises: BadRow if the template refuses the conversation."""
        prepared = self._prepare(messages)
        return self._encode_marked(prepared) if self.marked else self._encode_found(prepared)

    def encode_whole(self, messages: Sequence[Message], *, prompt: bool = False) -> list[int]:
        """Ids without any mask; prompt: of a conversation that the assistant is to continue."""
        text = self.render(self._prepare(messages), add_generation_prompt=prompt)
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The conversation as text. Raises: BadRow with the template's own words if it refuses."""
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except (TemplateError, KeyError, IndexError, TypeError) as error:
            raise BadRow(f"the chat template refuses this conversation: {error}") from error

    def end_of_turn(self) -> list[int]:
        """Special tokens that end a reply, for generation to stop at: [<|im_end|>]."""
        messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": _STAND_IN}]
        closing = self.render(messages).partition(_STAND_IN)[2]
        ids = self.tokenizer(closing.strip(), add_special_tokens=False)["input_ids"]
        return [token for token in ids[:1] if token in self.tokenizer.added_tokens_decoder]

    def _prepare(self, messages: Sequence[Message]) -> list[Message]:
        """A system prompt goes into the first user turn where the template has no place for one."""
        if self.takes_system or not messages or messages[0]["role"] != "system":
            return list(messages)
        system, rest = messages[0]["content"], [dict(message) for message in messages[1:]]
        for message in rest:
            if message["role"] == "user":
                message["content"] = f"{system}\n\n{message['content']}"
                return rest
        return rest

    def _takes_system(self) -> bool:
        probe = [{"role": "system", "content": _STAND_IN}, {"role": "user", "content": "Hi"}]
        try:
            return _STAND_IN in self.render(probe)
        except BadRow:
            return False

    def _encode_marked(self, messages: list[Message]) -> tuple[list[int], list[Span]]:
        from jinja2 import TemplateError

        try:
            encoded = self.tokenizer.apply_chat_template(
                messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
            )
        except (TemplateError, KeyError, IndexError, TypeError) as error:
            raise BadRow(f"the chat template refuses this conversation: {error}") from error
        ids = list(encoded["input_ids"])
        special = set(self.tokenizer.added_tokens_decoder)
        spans = []
        for start, end in runs(encoded["assistant_masks"]):
            if ids[end - 1] not in special and end < len(ids) and ids[end] in special:
                end += 1  # the mark that ends the turn stands right behind the marked part
            spans.append((start, end))
        return self._ended(ids, spans, closed=bool(spans) and ids[spans[-1][1] - 1] in special)

    def _encode_found(self, messages: list[Message]) -> tuple[list[int], list[Span]]:
        text = self.render(messages)
        characters, closed = self._reply_spans(messages, text)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return self._ended(
            list(encoded["input_ids"]), token_spans(encoded["offset_mapping"], characters), closed=closed
        )

    def _ended(self, ids: list[int], spans: list[Span], *, closed: bool) -> tuple[list[int], list[Span]]:
        """A last reply that no mark ends gets the end-of-text token, or the model would never learn to stop."""
        eos = self.tokenizer.eos_token_id
        if closed or not spans or eos is None or spans[-1][1] != len(ids):
            return ids, spans
        return [*ids, eos], [*spans[:-1], (spans[-1][0], len(ids) + 1)]

    def _reply_spans(self, messages: list[Message], text: str) -> tuple[list[Span], bool]:
        """Characters of `text` to learn, a span for each assistant turn; and whether a mark ends the last one."""
        spans, closed = [], False
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            other_message = {**message, "content": _STAND_IN}
            other = self.render([*messages[:index], other_message, *messages[index + 1 :]])
            if other.count(_STAND_IN) != 1:
                raise _unmaskable("it shows a reply not at all, or more than once")
            start = _common_prefix(text, other)
            end = len(text) - _common_suffix(text[start:], other[start:])
            closing = self.render([*messages[:index], other_message]).partition(_STAND_IN)[2]
            mark = closing.rstrip() or closing
            closed = bool(mark) and text.startswith(mark, end)
            spans.append((self._turn_start(messages[:index], text, start), end + len(mark) * closed))
        if any(after[0] < before[1] for before, after in itertools.pairwise(spans)):
            raise _unmaskable("its replies overlap")
        return spans, closed

    def _turn_start(self, before: list[Message], text: str, content_start: int) -> int:
        """Where the generation prompt ends: what stands between it and the reply (an empty <think> block) is supervised."""
        try:
            prompt = self.render(before, add_generation_prompt=True)
        except BadRow:  # such as no message at all before the first turn
            return content_start
        return len(prompt) if len(prompt) <= content_start and text.startswith(prompt) else content_start


def ensure_template(tokenizer: Any, *, plain: bool) -> bool:
    """Give a tokenizer without a chat template (or any, if plain) the plain layout; True if it has its own.

    The template is saved with the tokenizer, so that whoever uses the model later asks it as it was taught.
    Raises: UserError without an end-of-text token, which the layout needs.
    """
    if tokenizer.chat_template and not plain:
        if isinstance(tokenizer.chat_template, dict):
            tokenizer.chat_template = tokenizer.chat_template.get("default") or next(
                iter(tokenizer.chat_template.values())
            )
        return True
    if tokenizer.eos_token is None:
        raise UserError(
            "the tokenizer has neither a chat template nor an end-of-text token, so no reply could end",
            remedy="Choose another model.tokenizer.",
        )
    ids = tokenizer("a")["input_ids"]
    begins = tokenizer.bos_token is not None and bool(ids) and ids[0] == tokenizer.bos_token_id
    tokenizer.chat_template = ("{{ bos_token }}" if begins else "") + PLAIN_TEMPLATE
    return False


def token_spans(offsets: Sequence[Span], characters: Sequence[Span]) -> list[Span]:
    """Runs of tokens that share a character with one of the spans; tokens without characters belong to none.

    [(0, 2), (2, 5), (5, 6)], [(3, 6)] -> [(1, 3)]
    """
    found: list[Span] = []
    position = 0
    for start, end in characters:
        while position < len(offsets) and offsets[position][1] <= start:
            position += 1
        first = position
        while position < len(offsets) and offsets[position][0] < end:
            position += 1
        if position > first:
            found.append((first, position))
    return found


def runs(mask: Sequence[int]) -> list[Span]:
    """[0, 1, 1, 0, 1] -> [(1, 3), (4, 5)]."""
    padded = [0, *mask, 0]
    edges = [index for index in range(len(mask) + 1) if padded[index] != padded[index + 1]]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _common_prefix(one: str, other: str) -> int:
    limit = min(len(one), len(other))
    return next((index for index in range(limit) if one[index] != other[index]), limit)


def _common_suffix(one: str, other: str) -> int:
    return _common_prefix(one[::-1], other[::-1])


def _unmaskable(why: str) -> UserError:
    return UserError(
        f"the chat template cannot be masked: {why}",
        remedy="Put {% generation %} ... {% endgeneration %} around the assistant's part of the template, set "
        "options.template: plain, or learn whole conversations with options.train_on: all.",
    )
