"""Conversations as text to be tokenized, with the characters to learn, by the chat template of a tokenizer.

What a conversation says must be in its text: a turn, a tool call or words beside it that the template leaves out make
the row bad; thoughts, tool schemas and other keys that it leaves out, and words that it changes, become notices.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from finetune.data.bad_rows import BadRow
from finetune.errors import UserError
from finetune.models.chat_layouts import PLAIN
from finetune.tasks.text.chat_template import ChatTemplate, Span, words_of
from finetune.tasks.text.conversations import Conversation, Message
from finetune.tasks.text.drafts import Draft
from finetune.tasks.text.reply_spans import Found, ReplyFinder
from finetune.tasks.text.tool_calls import Tool, as_mapping

_KNOWN_KEYS = frozenset({"role", "content", "tool_calls", "tool_call_id", "reasoning_content"})
NO_TOOLS = "the chat template has no place for tool schemas: they are left out"
UNMARKED = "the chat template marks no part of it as the assistant's: there is nothing to learn"
EMPTY = "the reply is empty: there is nothing to learn"
_ENCODERS: WeakKeyDictionary[Any, ChatEncoder] = WeakKeyDictionary()


def chat_encoder(tokenizer: Any) -> ChatEncoder:
    """The encoder for the templates that a tokenizer has now. What it finds out about them is kept with the tokenizer."""
    known = _ENCODERS.get(tokenizer)
    if known is None or known.sources != tokenizer.chat_template:
        known = _ENCODERS[tokenizer] = ChatEncoder(tokenizer)
    return known


class ChatEncoder:
    """Conversation -> text with the characters to learn. Holds no tokenizer.

    A tokenizer may have several templates; the one called tool_use is for conversations with tools.
    """

    def __init__(self, tokenizer: Any) -> None:
        sources = self.sources = tokenizer.chat_template
        default = _default_source(sources)
        with_tools = sources.get("tool_use", default) if isinstance(sources, Mapping) else default
        added = tokenizer.added_tokens_decoder.values()
        self._ends = tuple(
            {str(token.content) for token in added if token.special} | {tokenizer.eos_token or ""} - {""}
        )
        self._openings = {mark[0] for mark in self._ends}
        self._marks = re.compile("|".join(map(re.escape, sorted(self._ends, key=len, reverse=True))) or r"(?!)")
        self._default = ReplyFinder(ChatTemplate(tokenizer, default), self._ends)
        self._with_tools = self._default
        if with_tools != default:
            self._with_tools = ReplyFinder(ChatTemplate(tokenizer, with_tools), self._ends)

    def draft(self, conversation: Conversation, *, whole: bool = False) -> Draft:
        """The conversation with the turns to learn, or whole: without any span, which needs no mask.

        Raises: BadRow; UserError for a template whose replies cannot be found at all.
        """
        finder = self._finder(conversation)
        template, tools = finder.template, list(conversation.tools)
        messages, names, notices = self._prepare(template, conversation)
        learned = [index for index, name in enumerate(names) if name in conversation.learned]
        if whole:
            text = template.render(messages, tools)
            notices += _check(template, messages, names, tools, text)
            start, end = self._last_reply(template, messages, tools, text)
            return Draft(text, reply_start=start, reply_end=end, notices=tuple(notices))
        found = finder.find(messages, tools)
        notices += found.notices
        spans = [span for index in learned for span in found.spans.get(index, ())]
        if not found.exact:
            notices += _check(template, messages, names, tools, found.text, found.spans)
            spans = []
            for index in learned:
                spans += self._worth_learning(messages[index], names[index], found, index, notices)
        if not spans:
            raise BadRow(UNMARKED if template.marked and not any(found.spans.values()) else EMPTY)
        return Draft(found.text, spans, marked=template.marked, closed=found.closed, notices=tuple(notices))

    def draft_prompt(self, conversation: Conversation) -> Draft:
        """The conversation up to where the assistant is to continue."""
        template, tools = self._finder(conversation).template, list(conversation.tools)
        messages, names, notices = self._prepare(template, conversation)
        text = template.render(messages, tools, prompt=True)
        notices += _check(template, messages, names, tools, text)
        return Draft(text, reply_start=len(text), notices=tuple(notices))

    def end_of_turn(self, tokenizer: Any) -> list[int]:
        """Special tokens that end a reply or a tool call, for generation to stop at: [<|im_end|>]."""
        ends = set()
        for finder in {id(one): one for one in (self._default, self._with_tools)}.values():
            texts = [(finder.template.closing or "").strip(), finder.template.call_ending.rstrip()]
            first, last = (list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
            ends |= {token for token in (*first[:1], *last[-1:]) if token in tokenizer.added_tokens_decoder}
        return sorted(ends)

    def _finder(self, conversation: Conversation) -> ReplyFinder:
        return self._with_tools if conversation.tools else self._default

    def _prepare(
        self, template: ChatTemplate, conversation: Conversation
    ) -> tuple[list[Message], list[int], list[str]]:
        """(messages as the template takes them, the position of each in the conversation, notices)."""
        notices = list(conversation.notices)
        if conversation.tools and not template.takes_tools:
            notices.append(NO_TOOLS)
        messages = []
        for index, message in enumerate(conversation.messages):
            notices += self._marks_in(message)
            if message.get("tool_calls"):
                form = template.call_form
                if form is None:
                    raise BadRow(f"message {index + 1} calls a tool, and the chat template has no place for tool calls")
                message = template.prepare_call(message, form)
            messages.append(_without_unused(template, message, notices) if len(message) > 2 else message)
        names = list(range(len(messages)))
        if messages and messages[0]["role"] == "system" and not template.takes_system:
            messages, names = _with_moved_system(messages), names[1:]
            notices.append("the chat template has no place for a system prompt: it is put before the first user turn")
        return messages, names, notices

    def _marks_in(self, message: Message) -> Iterator[str]:
        """A notice for the names of special tokens among the words of a turn: of a text that a template wrote, say."""
        words = message["content"]
        if any(opening in words for opening in self._openings):  # much faster than to search for each name
            for mark in sorted(set(self._marks.findall(words))):
                yield f"text of the {message['role']} contains {mark}, which is read as the special token, not as text"

    def _worth_learning(
        self, message: Message, name: int, found: Found, index: int, notices: list[str]
    ) -> Sequence[Span]:
        """The spans of a turn, checked against what it says; none of a turn that is empty as the template writes it."""
        spans = found.spans.get(index, ())
        if not spans:
            notices.append("the chat template does not mark a reply as the assistant's: it is not learned")
            return []
        said = "".join(found.text[start:end] for start, end in spans)
        calls = message.get("tool_calls", ())
        called = [call["function"]["name"] for call in calls]
        for function in called:
            if said.count(function) < called.count(function):
                raise BadRow(f"the chat template leaves out the call of {function} in message {name + 1}")
        for value in _leaves([as_mapping(call["function"]["arguments"], "arguments") for call in calls]):
            if not _is_in(value, said):
                notices.append("the chat template changes the arguments of a tool call")
        bare = said.rstrip()
        for end in self._ends:
            bare = bare.removesuffix(end)
        if bare.strip():
            return spans
        notices.append("a reply is empty as the chat template writes it: it is not learned")
        return []

    def _last_reply(
        self, template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Tool], text: str
    ) -> tuple[int, int | None]:
        """Where the last reply begins, as far as the generation prompt says it, and where it ends; None: with the text, or
        where the template does not say.
        """
        last = max((index for index, message in enumerate(messages) if message["role"] == "assistant"), default=0)
        try:
            start = min(len(template.render(messages[:last], tools, prompt=True)), len(text))
        except BadRow:
            return 0, None
        if last == len(messages) - 1:
            return start, None
        try:
            until = template.render(messages[: last + 1], tools)
        except BadRow:
            return start, None
        return start, len(until) if text.startswith(until) and start < len(until) else None


def _default_source(sources: Any) -> str:
    """The template of a tokenizer that has one, or the one called default of several."""
    if isinstance(sources, Mapping):
        return str(sources.get("default") or next(iter(sources.values())))
    return str(sources)


def _without_unused(template: ChatTemplate, message: Message, notices: list[str]) -> Message:
    """The message without keys that the template does not use. Those that hold words or lists become notices."""
    kept = dict(message)
    for key, value in message.items():
        if key in _KNOWN_KEYS or template.uses_key(message["role"], key, value):
            continue
        del kept[key]
        holds = isinstance(value, (str, list, tuple, Mapping)) and len(value) > 0
        if holds and not (key == "name" and message["role"] == "tool"):
            notices.append(f"the chat template does not use {key!r} of the {message['role']}'s messages")
    return kept


def _with_moved_system(messages: list[Message]) -> list[Message]:
    """Without the system turn, its words before those of the first user turn."""
    system, rest = messages[0]["content"], [dict(message) for message in messages[1:]]
    for message in rest:
        if message["role"] == "user":
            message["content"] = f"{system}\n\n{message['content']}"
            return rest
    raise BadRow("the chat template has no place for a system prompt, and there is no user turn to put it before")


def _check(
    template: ChatTemplate,
    messages: Sequence[Message],
    names: Sequence[int],
    tools: Sequence[Tool],
    text: str,
    spans: Mapping[int, Sequence[Span]] | None = None,
) -> Iterator[str]:
    """Notices on words that are not in the text as the row has them. Raises: BadRow for a turn that is left out."""
    changed = [index for index, message in enumerate(messages) if not _is_in(words_of(message), text)]
    left_out = template.left_out(messages, tools)
    if left_out:
        index = min(left_out)
        beside = " beside its tool calls" if messages[index].get("tool_calls") else ""
        role = messages[index]["role"]
        raise BadRow(f"the chat template leaves out the text of message {names[index] + 1} ({role}){beside}")
    last = max((index for index, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
    for index, message in enumerate(messages):
        thoughts = [message.get("reasoning_content", "")]
        words = words_of(message)
        if index in changed:
            thought, mark, rest = words.rpartition("</think>")
            if mark:
                thoughts.append(thought.rpartition("<think>")[2])
                words = rest
            if not _is_in(words, text):
                yield f"the chat template changes or leaves out text of the {message['role']}"
        said = "".join(text[start:end] for start, end in (spans or {}).get(index, ())) or text
        if not all(_is_in(thought, said) for thought in thoughts):
            which = "the last reply" if index == last else "replies before the last one"
            yield f"the chat template leaves out the reasoning of {which}: it is not learned"


def _is_in(words: str, text: str) -> bool:
    """Whether words stand in a text, bare or inside a JSON string."""
    words = words.strip()
    return words in text or any(json.dumps(words, ensure_ascii=ascii)[1:-1] in text for ascii in (False, True))


def _leaves(value: Any) -> Iterator[str]:
    """The texts inside a JSON value, without the keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)


def ensure_template(tokenizer: Any, *, plain: bool) -> bool:
    """Give a tokenizer without a chat template (or any, if plain) the plain layout; True if it has its own.

    The template is saved with the tokenizer, so that whoever uses the model later asks it as it was taught.
    Raises: UserError without an end-of-text token, which the layout needs.
    """
    if tokenizer.chat_template and not plain:
        return True
    if tokenizer.eos_token is None:
        raise UserError(
            "the tokenizer has neither a chat template nor an end-of-text token, so no reply could end",
            remedy="Choose another model.tokenizer.",
        )
    ids = tokenizer("a")["input_ids"]
    begins = tokenizer.bos_token is not None and bool(ids) and ids[0] == tokenizer.bos_token_id
    tokenizer.chat_template = ("{{ bos_token }}" if begins else "") + PLAIN
    return False
