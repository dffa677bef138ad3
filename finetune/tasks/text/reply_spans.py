"""Where the assistant speaks in a rendered conversation, under any chat template.

What is learned of a turn is what the model must produce itself: from where the generation prompt ends, through the reply
and its tool calls, to the mark that ends the turn. It is found in this order:

1. Templates with {% generation %} marks are taken at their word.
2. The shape of the conversation (who speaks, in which order) is rendered once with a stand-in for each message. If the
   text of a row is that skeleton with the row's words in the places of the stand-ins, its spans are known without
   rendering anything else.
3. Otherwise the conversation is rendered up to the reply, with the generation prompt, and up to its end: where both are
   beginnings of the whole text, the reply is what lies between.
4. Where the end is none (templates that treat the last turn in another way), the reply is what changes when it is
   replaced by a stand-in.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from finetune.data.bad_rows import BadRow
from finetune.errors import UserError
from finetune.tasks.text.chat_template import STAND_IN, ChatTemplate, Span
from finetune.tasks.text.conversations import Message
from finetune.tasks.text.tool_calls import Tool

REMEDY = (
    "Put {% generation %} ... {% endgeneration %} around the assistant's part of the template, set "
    "options.template: plain, or learn whole conversations with options.train_on: all."
)


Edge = tuple[int, int]


@dataclass(frozen=True)
class Found:
    """text: the rendered conversation. spans: characters to learn, by position of the message. closed: a mark ends the
    last one. notices: see Task.encode. exact: the text is known to hold the words of every message as they are, but for
    blanks around them, and none is empty.
    """

    text: str
    spans: dict[int, list[Span]]
    closed: bool = True
    notices: tuple[str, ...] = ()
    exact: bool = False


@dataclass(frozen=True)
class Skeleton:
    """pieces: what a template writes around the words of each message. edges: of the spans of each message, as (piece,
    offset in it).
    """

    pieces: Sequence[str]
    edges: dict[int, list[tuple[Edge, Edge]]]
    closed: bool
    notices: tuple[str, ...]


class ReplyFinder:
    """Finds the replies of conversations under one template. Picklable.

    ends: the tokens that can end a turn, as text.
    """

    def __init__(self, template: ChatTemplate, ends: Collection[str]) -> None:
        self.template, self._ends = template, tuple(end for end in ends if end.strip())
        self._skeletons: dict[tuple[str, ...], Skeleton | None] = {}

    def find(self, messages: Sequence[Message], tools: Sequence[Tool]) -> Found:
        """The rendered conversation and the spans of all turns of the assistant.

        Raises: BadRow if the template shows a reply in no place that can be found; UserError if it never does.
        """
        if not self.template.marked and self.template.hides_replies:
            raise UserError(
                "the chat template cannot be masked: its output does not contain each reply exactly once", remedy=REMEDY
            )
        simple = not tools and all(len(message) == 2 for message in messages)  # role and content alone
        if simple and not self.template.marked:
            skeleton = self._skeleton(messages)
            text = self.template.render(messages)
            found = skeleton and fill(skeleton, [message["content"] for message in messages], text)
            if found:
                return found
        return self._search(messages, tools)

    def _skeleton(self, messages: Sequence[Message]) -> Skeleton | None:
        roles = tuple(message["role"] for message in messages)
        if roles not in self._skeletons:
            if len(self._skeletons) > 10_000:
                self._skeletons.clear()
            self._skeletons[roles] = self._make_skeleton(roles)
        return self._skeletons[roles]

    def _make_skeleton(self, roles: Sequence[str]) -> Skeleton | None:
        names = [f"\ue000{index}\ue001" for index in range(len(roles))]
        messages: list[Message] = [{"role": role, "content": name} for role, name in zip(roles, names, strict=True)]
        try:
            found = self._search(messages, ())
        except BadRow:
            return None
        pieces, rest = [], found.text
        for name in names:
            if rest.count(name) != 1:
                return None
            before, _, rest = rest.partition(name)
            pieces.append(before)
        pieces.append(rest)
        starts = list(itertools.accumulate((len(p) + len(n) for p, n in zip(pieces, names, strict=False)), initial=0))
        edges: dict[int, list[tuple[Edge, Edge]]] = {}
        for index, spans in found.spans.items():
            for start, end in spans:
                first, last = _piece_of(start, starts, pieces), _piece_of(end, starts, pieces)
                if first is None or last is None:
                    return None
                edges.setdefault(index, []).append((first, last))
        return Skeleton(pieces, edges, found.closed, found.notices)

    def _search(self, messages: Sequence[Message], tools: Sequence[Tool]) -> Found:
        if not self.template.marked:
            return self._search_unmarked(messages, tools, self.template.render(messages, tools))
        text, marks = self.template.render_marked(messages, tools)
        odd = self.template.prompt_ends_elsewhere
        return Found(
            text,
            spans_by_marks(self.template, messages, tools, marks),
            notices=() if odd is None else (_odd_prompt(odd),),
        )

    def _search_unmarked(self, messages: Sequence[Message], tools: Sequence[Tool], text: str) -> Found:
        spans: dict[int, Span] = {}
        closed, notices = False, []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._try(messages[:index], tools, prompt=True)
            start = len(prompt) if prompt is not None and text.startswith(prompt) else None
            span, closed = self._whole_turn(messages, index, tools, text, start) or self._replaced_turn(
                messages, index, tools, text, start, prompt or ""
            )
            if start is None and prompt is not None:
                notices.append(_odd_prompt(prompt))
            spans[index] = span
        ordered = list(spans.values())
        if any(after[0] < before[1] for before, after in itertools.pairwise(ordered)):
            raise BadRow("the chat template cannot be masked: its replies overlap")
        by_turn = {index: [span] for index, span in spans.items()}
        return Found(text, by_turn, closed, tuple(dict.fromkeys(notices)))

    def _whole_turn(
        self, messages: Sequence[Message], index: int, tools: Sequence[Tool], text: str, start: int | None
    ) -> tuple[Span, bool] | None:
        """The turn from `start` to the end of the conversation up to it, if that is a beginning of the text."""
        last = index == len(messages) - 1
        upto = text if last else self._try(messages[: index + 1], tools)
        if start is None or upto is None or not text.startswith(upto) or len(upto) <= start:
            return None
        end, closed = self._trim(upto)
        return ((start, end), closed) if end > start else None

    def _trim(self, upto: str) -> tuple[int, bool]:
        """(where what is learned of the last turn ends, whether a mark ends it): without blanks behind the mark."""
        closing, bare = self.template.closing or "", upto.rstrip()
        if closing.strip() and upto.endswith(closing):
            return len(upto) - len(closing) + len(closing.rstrip()), True
        if bare.endswith(self._ends):
            return len(bare), True
        if closing and upto.endswith(closing):  # a blank line is all that ends a turn
            return len(upto), True
        return len(upto), False

    def _replaced_turn(
        self,
        messages: Sequence[Message],
        index: int,
        tools: Sequence[Tool],
        text: str,
        start: int | None,
        prompt: str,
    ) -> tuple[Span, bool]:
        """What changes in the text when the turn is replaced: its words, or else the name of its last call."""
        message = messages[index]
        plain = {key: value for key, value in message.items() if key not in ("tool_calls", "reasoning_content")}
        others: list[Message] = [{**plain, "content": STAND_IN}]
        if message.get("tool_calls"):
            *first, last = message["tool_calls"]
            renamed = {**last, "function": {**last["function"], "name": STAND_IN}}
            others.append({**message, "tool_calls": [*first, renamed]})
        for other_message in others:
            other = self._try([*messages[:index], other_message, *messages[index + 1 :]], tools)
            alone = self._try([*messages[:index], other_message], tools)
            if other is None or STAND_IN not in other:
                continue
            if other_message is others[0] and other.count(STAND_IN) != 1:
                continue
            changed = _common_prefix(text, other)
            end = len(text) - _common_suffix(text[changed:], other[changed:])
            closing = (alone or "").rpartition(STAND_IN)[2]
            mark = closing.rstrip() or closing
            closed = bool(mark) and text.startswith(mark, end)
            begin = start
            if begin is None:
                begin = changed if other_message is others[0] else _common_prefix(text, prompt)
            end = end + len(mark) * closed
            if begin <= end:
                return (begin, end), closed
        raise BadRow(
            f"the chat template cannot be masked: its output does not contain message {index + 1} exactly once. {REMEDY}"
        )

    def _try(self, messages: Sequence[Message], tools: Sequence[Tool], *, prompt: bool = False) -> str | None:
        try:
            return self.template.render(messages, tools, prompt=prompt)
        except BadRow:  # such as no message at all before the first turn
            return None


def fill(skeleton: Skeleton, contents: Sequence[str], text: str) -> Found | None:
    """The spans in `text`, if it is the skeleton with these contents, as they are or without blanks around them."""
    for words in (contents, [content.strip() for content in contents]):
        parts = [piece for pair in zip(skeleton.pieces, words, strict=False) for piece in pair]
        if "".join([*parts, skeleton.pieces[-1]]) != text:
            continue
        if not all(words):
            return None  # a template may treat an empty turn in another way before it
        starts = list(
            itertools.accumulate((len(p) + len(w) for p, w in zip(skeleton.pieces, words, strict=False)), initial=0)
        )
        spans = {
            index: [(starts[first] + offset, starts[last] + end) for (first, offset), (last, end) in edges]
            for index, edges in skeleton.edges.items()
        }
        return Found(text, spans, skeleton.closed, skeleton.notices, exact=True)
    return None


def _piece_of(position: int, starts: Sequence[int], pieces: Sequence[str]) -> tuple[int, int] | None:
    """(piece, offset in it) of a character position; None inside the words of a message."""
    for index, (start, piece) in enumerate(zip(starts, pieces, strict=True)):
        if start <= position <= start + len(piece):
            return index, position - start
    return None


def spans_by_marks(
    template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Tool], marks: Sequence[Span]
) -> dict[int, list[Span]]:
    """The marked spans of each turn of the assistant.

    A template that marks each turn once needs no more than to be counted; else the marks up to each turn are.
    Raises: BadRow if they belong to no turn for certain.
    """
    replies = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if len(marks) == len(replies):
        return {index: [mark] for index, mark in zip(replies, marks, strict=True)}
    by_turn: dict[int, list[Span]] = {}
    done = 0
    for index in replies:
        upto = len(marks) if index == replies[-1] else len(template.render_marked(messages[: index + 1], tools)[1])
        if not done <= upto <= len(marks):
            raise BadRow("the marked parts of the chat template cannot be assigned to turns")
        by_turn[index] = list(marks[done:upto])
        done = upto
    return by_turn


def _odd_prompt(prompt: str) -> str:
    return (
        f"the conversation as the chat template prints it does not begin with the generation prompt, which ends in "
        f"{prompt[-12:]!r}: the reply is learned from its first token there"
    )


def _common_prefix(one: str, other: str) -> int:
    low, high = 0, min(len(one), len(other))
    while low < high:  # by halves: comparing slices is much faster than characters
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low


def _common_suffix(one: str, other: str) -> int:
    return _common_prefix(one[::-1], other[::-1])
