"""Keys of a request's rows: those that the model reads, and those that are probably misspelled."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from finetune.data.columns import nearest_name
from finetune.inference.serving.faults import malformed
from finetune.inference.serving.messages import ModelFacts
from finetune.recipe.roles import role_of

ROWS = "rows"


def check_lone_row(row: Mapping[str, Any], facts: ModelFacts, options: Sequence[str]) -> None:
    """Check a body that is an object without rows: it is one row, if it has a column that the model reads.

    Raises: RequestFault (400) for one that has none, such as {"row": [...]}, and for an option beside the columns, which
    would be ignored there.
    """
    names = known_keys(facts)
    known = names | {name for name in row if name.strip().casefold() in names}
    for name in row:
        if name in options and name not in known:
            raise malformed(
                f"{name} is an option, and the body is one row: put the row under {ROWS}, or {name} into the query",
                param=name,
                kind="unknown_option",
            )
        near = nearest_name(name, (*options, ROWS)) if name not in known else ""
        if near:
            raise malformed(
                f"unknown key {name[:100]!r}; did you mean {near}?", param=name[:100], kind="unknown_option"
            )
    if not any(name in known for name in row):
        name = next(iter(row), "")
        near = nearest_name(name, (ROWS, *roles_and_columns(facts)))
        hint = (
            f"did you mean {near}?" if near else f"send {ROWS}, or a row with {' or '.join(roles_and_columns(facts))}"
        )
        what = f"unknown key {name[:100]!r}" if name else "the body is an object without keys"
        raise malformed(f"{what}; {hint}", param=name[:100] or None, kind="unknown_option")


def unread_keys(row: Collection[str], read: Collection[str], facts: ModelFacts) -> tuple[list[str], str]:
    """(keys that are not read, the fault of one that is probably a misspelled one, or ""). read: keys that are.

    Columns of what the answer should be are known, although a server does not read them.
    """
    possible = [name for name in roles_and_columns(facts) if name not in row and name not in read]
    unread = [name for name in row if name not in read and name not in facts.targets]
    for name in unread:
        near = nearest_name(name, possible)
        if near:
            return unread, f"unknown column {name[:100]!r}; did you mean {near}?"
    return unread, ""


def roles_and_columns(facts: ModelFacts) -> list[str]:
    """The names under which a row may have its values, but for aliases."""
    return list(dict.fromkeys(name for role in facts.roles for name in (facts.columns.get(role, role), role)))


def known_keys(facts: ModelFacts) -> set[str]:
    """All names that are read: those of roles_and_columns, their aliases, and those of what the answer should be."""
    aliases = {alias for role in facts.roles for alias in role_of(role).aliases}
    columns = {name.partition(".")[0] for name in roles_and_columns(facts)}
    return {*roles_and_columns(facts), *columns, *aliases, *facts.targets}
