"""A chat template and what it has a place for, found out by rendering small conversations.

Templates are programs: whatever they raise makes the row bad, and their time and the size of what they write are limited.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from finetune.data.bad_rows import BadRow
from finetune.errors import FinetuneError, UserError
from finetune.tasks.text import template_limits
from finetune.tasks.text.conversations import Message
from finetune.tasks.text.template_limits import TookTooLong, rendering_limits
from finetune.tasks.text.tool_calls import Tool, with_arguments
from finetune.units import format_bytes

Span = tuple[int, int]  # [start, end), in characters of a text or in tokens

STAND_IN = "\ue000reply\ue001"  # private-use characters: no reply begins or ends with them, no template trims them
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_ID = "a1b2c3d4e"  # Mistral's templates take identifiers of nine letters and digits only
SHOWN = 1_000  # characters of what a template says that are shown
_USER: Message = {"role": "user", "content": "Hi"}
_REPLY: Message = {"role": "assistant", "content": "Yes."}


@dataclass(frozen=True)
class CallForm:
    """How a template takes tool calls. arguments: "mapping" or "text". content: of a turn without words: "empty" text,
    "none" (as DeepSeek R1 asks for), or the key is "absent".
    """

    arguments: str
    content: str


class ChatTemplate:
    """One template of a tokenizer. Picklable; what was found out about the template is kept.

    marked: it marks the assistant's part with {% generation %}.
    """

    def __init__(self, tokenizer: Any, source: str) -> None:
        self.source = source
        self.marked = bool(_GENERATION.search(source))
        self._special = dict(tokenizer.special_tokens_map)
        self._found: dict[Any, Any] = {}
        self._strikes = 0

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = (), *, prompt: bool = False) -> str:
        """The conversation as text; prompt: up to where the assistant is to continue.

        Raises: BadRow with the template's own words if it refuses, takes too long or writes too much.
        """
        return self._run(messages, tools, prompt=prompt, marks=False)[0]

    def render_marked(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> tuple[str, list[Span]]:
        """The text, and the characters that the template marks as the assistant's."""
        return self._run(messages, tools, prompt=False, marks=True)

    def _run(
        self, messages: Sequence[Message], tools: Sequence[Tool], *, prompt: bool, marks: bool
    ) -> tuple[str, list[Span]]:
        excess = ""
        try:
            with rendering_limits(template_limits.SECONDS):
                rendered: Any = render_jinja_template(
                    conversations=[list(messages)],
                    tools=list(tools) or None,
                    chat_template=self.source,
                    return_assistant_tokens_mask=marks,
                    add_generation_prompt=prompt,
                    **self._special,
                )
        except (ImportError, FinetuneError):
            raise  # the installation is at fault, or somebody stops the program: not the row
        except TookTooLong:
            excess = f"took longer than {template_limits.SECONDS:g} seconds"
        except MemoryError:
            excess = f"needs more than {format_bytes(template_limits.BYTES)} of memory"
        except Exception as error:  # a template may raise anything
            kind = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
            raise BadRow(f"the chat template refuses this conversation: {kind}{_shortened(error)}") from error
        if (
            excess
        ):  # not inside the handler: the new exception would hold the old one, and so what the template has made
            gc.collect()  # json's encoder holds a gigabyte of indent in functions that name each other
            raise self._strike(excess)
        text, spans = rendered[0][0], rendered[1]
        if len(text) > template_limits.CHARACTERS:
            raise BadRow(f"the chat template writes {len(text):,} characters, more than {template_limits.CHARACTERS:,}")
        return text, [(start, end) for start, end in spans[0] if end > start] if marks else []

    def _strike(self, what: str) -> Exception:
        """A bad row; after several of them the template is at fault, and no other row is tried."""
        self._strikes += 1
        if self._strikes < template_limits.STRIKES:
            return BadRow(f"the chat template {what}")
        return UserError(
            f"the chat template {what}, {self._strikes} times",
            where="chat_template of the tokenizer",
            remedy="It is a program that came with the tokenizer, and it may be damaged or hostile: take another tokenizer.",
        )

    def _once(self, key: Any, find: Any) -> Any:
        if key not in self._found:
            self._found[key] = find()
        return self._found[key]

    def _shown(self, *conversations: Sequence[Message], tools: Sequence[Tool] = ()) -> str | None:
        """The text of the first conversation that the template takes; None if it takes none of them."""
        for messages in conversations:
            try:
                return self.render(messages, tools)
            except BadRow:
                continue
        return None

    @property
    def takes_system(self) -> bool:
        """Whether a system turn at the beginning has a place."""
        system = {"role": "system", "content": STAND_IN}
        return self._once("system", lambda: STAND_IN in (self._shown([system, _USER], [system, _USER, _REPLY]) or ""))

    @property
    def takes_tools(self) -> bool:
        """Whether tool schemas have a place."""
        tool = _tool(STAND_IN)
        return self._once(
            "tools", lambda: STAND_IN in (self._shown([_USER], [_USER, _REPLY], tools=[tool]) or STAND_IN)
        )

    @property
    def call_form(self) -> CallForm | None:
        """How tool calls are to be given; None if they have no place."""
        return self._once("calls", self._find_call_form)

    def _find_call_form(self) -> CallForm | None:
        """The first form whose text holds name and argument, neither encoded twice nor as Python writes a mapping."""
        for content in ("empty", "none", "absent"):
            for arguments in ("mapping", "text"):
                form = CallForm(arguments, content)
                calling = self.prepare_call({"role": "assistant", "content": "", "tool_calls": [probe_call()]}, form)
                result = {"role": "tool", "tool_call_id": _ID, "name": "probe", "content": "4"}
                text = self._shown([_USER, calling], [_USER, calling, result, _REPLY]) or ""
                if "probe" in text and STAND_IN in text and not re.search(r"\\\"city|'city'\s*:", text):
                    return form
        return None

    def prepare_call(self, message: Message, form: CallForm) -> Message:
        """A message with calls in the form of the template."""
        prepared = {**message, "tool_calls": with_arguments(message["tool_calls"], form.arguments)}
        if not message["content"] and form.content != "empty":
            prepared["content"] = None
            if form.content == "absent":
                del prepared["content"]
        return prepared

    @property
    def closing(self) -> str | None:
        """What follows the reply that ends a conversation; None if the template does not show it exactly once."""
        return self._once("closing", self._find_closing)

    def _find_closing(self) -> str | None:
        text = self._shown([_USER, {"role": "assistant", "content": STAND_IN}]) or ""
        return text.partition(STAND_IN)[2] if text.count(STAND_IN) == 1 else None

    @property
    def hides_replies(self) -> bool:
        """Whether it takes an ordinary conversation, but shows the reply not at all or more than once."""
        return self.closing is None and self._shown([_USER, _REPLY]) is not None

    @property
    def call_ending(self) -> str:
        """The end of a conversation whose last turn is a tool call; "" if calls have no place."""
        if self.call_form is None:
            return ""
        calling: Message = {"role": "assistant", "content": "", "tool_calls": [probe_call()]}
        return self._once("ending", lambda: self._shown([_USER, self.prepare_call(calling, self.call_form)]) or "")  # type: ignore[arg-type]

    @property
    def prompt_ends_elsewhere(self) -> str | None:
        """The end of the generation prompt, if no conversation goes on as it says (it opens <think>, say)."""
        return self._once("prompt", self._find_odd_prompt)

    def _find_odd_prompt(self) -> str | None:
        text = self._shown([_USER, _REPLY])
        try:
            prompt = self.render([_USER], prompt=True)
        except BadRow:
            return None
        return prompt if text is not None and not text.startswith(prompt) else None

    def uses_key(self, role: str, key: str, value: Any) -> bool:
        """Whether a key of messages of a role reaches the text; a template that refuses the probe is believed to."""
        kind = "text" if isinstance(value, str) else "list" if isinstance(value, (list, tuple)) else "other"
        if isinstance(value, (bool, int, float)):
            kind = f"{type(value).__name__} {bool(value)}"  # a template may use true, and not false
        return self._once(("key", role, key, kind), lambda: self._find_use(role, key, kind, value))

    def _find_use(self, role: str, key: str, kind: str, value: Any) -> bool:
        probe = {"text": STAND_IN, "list": [STAND_IN]}.get(kind, value)
        before: dict[str, list[Message]] = {"user": [], "system": [], "assistant": [_USER], "tool": [_USER]}
        message: Message = {"role": role, "content": "Hi"}
        if role == "tool":
            message.update(tool_call_id=_ID, name="probe")
            calling: Message = {"role": "assistant", "content": "", "tool_calls": [probe_call()]}
            before["tool"].append(self.prepare_call(calling, self.call_form) if self.call_form else _REPLY)
        after = [] if role in ("assistant", "user") else [_USER] if role == "system" else [_REPLY]
        try:
            without = self.render([*before[role], message, *after])
        except BadRow:
            return re.search(rf"\b{re.escape(key)}\b", self.source) is not None
        try:
            return self.render([*before[role], {**message, key: probe}, *after]) != without
        except BadRow:
            return True

    def left_out(self, messages: Sequence[Message], tools: Sequence[Tool]) -> frozenset[int]:
        """Positions of the messages whose words have no place in conversations of this shape, whatever they say.

        Thoughts are not looked at. Nothing if the template refuses the probe.
        """
        shape = tuple(
            (
                message["role"],
                bool(words_of(message).strip()),
                len(message.get("tool_calls", ())),
                bool(message.get("reasoning_content")),
            )
            for message in messages
        )
        if len(self._found) > 10_000:
            self._found.clear()
        return self._once(("shape", shape, bool(tools)), lambda: self._find_left_out(messages, tools))

    def _find_left_out(self, messages: Sequence[Message], tools: Sequence[Tool]) -> frozenset[int]:
        probes = [
            {**message, "content": f"\ue000{index}\ue001"} if words_of(message).strip() else message
            for index, message in enumerate(messages)
        ]
        try:
            text = self.render(probes, tools)
        except BadRow:
            return frozenset()
        wanted = [index for index, message in enumerate(messages) if words_of(message).strip()]
        return frozenset(index for index in wanted if f"\ue000{index}\ue001" not in text)


def _shortened(error: Exception) -> str:
    text = str(error)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."


def words_of(message: Message) -> str:
    """The content of a message, "" if a template is to see none."""
    return message.get("content") or ""


def probe_call() -> dict[str, Any]:
    """A call of the function `probe` with one argument, `city`."""
    return {"id": _ID, "type": "function", "function": {"name": "probe", "arguments": {"city": STAND_IN}}}


def _tool(name: str) -> Tool:
    parameters = {"type": "object", "properties": {"city": {"type": "string", "description": "A city."}}}
    function = {"name": name, "description": "A probe.", "parameters": {**parameters, "required": ["city"]}}
    return {"type": "function", "function": function}
