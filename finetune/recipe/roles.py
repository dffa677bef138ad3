"""The roles that columns have for tasks: one entry each. What a row says under a role means the same in every task.

A task lists its roles, and what each holds for it, in the `rows` of its card. An entry here adds what readers of rows need to
know before any task sees them. A role without an entry is of kind "value", and is found by its own name alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["text", "image", "label", "value"]


@dataclass(frozen=True)
class Role:
    """kind: text: a number in it is read as text. image: text in it is the path of a file, relative to the file that contains
    it, and a row with it takes much memory until it is answered. label: it says what the answer should be, so rows are
    compared without it. value: anything else.

    aliases: names of columns that are taken for the role where the data has none of its own name, and the recipe maps none, the
    likeliest first (pairs of names: column_pairs). guesses: further names, which a starter recipe proposes.
    may_be_blank: an empty value is no fault. example: a value to show to people.
    """

    kind: Kind = "value"
    aliases: tuple[str, ...] = ()
    guesses: tuple[str, ...] = ()
    may_be_blank: bool = False
    example: Any = None


ROLES: Mapping[str, Role] = {
    "instruction": Role("text", ("prompt", "question", "query", "problem"), example="Name three colors."),
    "input": Role("text", ("context",), may_be_blank=True),
    "output": Role("text", ("response", "answer", "completion", "reply")),
    "source": Role("text", ("document", "article", "inputs", "input", "prompt", "question"), example="Guten Morgen."),
    "target": Role("text"),
    "text": Role(
        "text",
        ("sentence", "sentence1", "text1", "premise", "question1", "content", "review", "document"),
        ("body", "comment", "tweet", "message"),
        example="A fine film.",
    ),
    "text_pair": Role("text", ("sentence2", "text2", "hypothesis", "question2"), ("pair",), may_be_blank=True),
    "label": Role(
        "label",
        ("labels", "class", "target", "category", "sentiment", "intent", "fine_label"),
        ("stars", "rating", "topic"),
        may_be_blank=True,
    ),
    "tokens": Role(aliases=("words",), example=["Ann", "lives", "in", "Rome"]),
    "tags": Role("label", ("ner_tags", "pos_tags", "upos", "labels"), may_be_blank=True),
    "prompt": Role("text", ("instruction", "question", "query", "input"), ("source", "user"), example="Name a color."),
    "completion": Role("text", ("response", "answer", "output", "reply"), ("target", "assistant")),
    "messages": Role(aliases=("conversations", "conversation", "dialogue", "dialog", "chat")),
    "system": Role("text", ("system_prompt",), may_be_blank=True),
    "history": Role(may_be_blank=True),
    "tools": Role(aliases=("functions",), may_be_blank=True),
    "functions": Role(may_be_blank=True),  # the other name of tools, which no card has
    "image": Role("image", ("img", "picture", "photo", "file_name", "image_path"), ("filename", "path", "file")),
    "objects": Role("label"),
}

_PLAIN = Role()


def role_of(name: str) -> Role:
    """The entry of a role; of one that has none, what holds for any value."""
    return ROLES.get(name, _PLAIN)


def example_row(roles: Collection[str], preferred: str = "") -> dict[str, Any]:
    """A row for people to see and models to answer: one of `roles` that has an example, `preferred` if it has; or {}."""
    chosen = next((name for name in (preferred, *ROLES) if name in roles and role_of(name).example is not None), None)
    return {} if chosen is None else {chosen: role_of(chosen).example}


def _of_kind(kind: Kind) -> tuple[str, ...]:
    return tuple(name for name, role in ROLES.items() if role.kind == kind)


TEXTS, IMAGES, LABELS = _of_kind("text"), _of_kind("image"), _of_kind("label")
