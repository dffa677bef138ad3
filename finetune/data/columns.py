"""Which column of the data plays which role: what the recipe maps, the role's own name, or a well-known alias."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.errors import UserError
from finetune.recipe.card import TaskCard

Required = tuple[tuple[str, ...], ...]  # every row has one role of each entry

SAMPLED = 1_000  # rows whose keys are the columns of a file that has no header

# Taken when the recipe maps nothing and the data has no column of the role's own name. First found, first taken.
ALIASES: Mapping[str, tuple[str, ...]] = {
    "text": ("sentence", "sentence1", "text1", "premise", "question1", "content", "review", "document"),
    "text_pair": ("sentence2", "text2", "hypothesis", "question2"),
    "label": ("labels", "class", "target", "category", "sentiment", "intent", "fine_label"),
    "labels": ("label", "classes", "tags", "categories"),
    "image": ("img", "picture", "photo", "file_name", "image_path"),
    "prompt": ("instruction", "question", "query"),
    "completion": ("response", "answer", "output", "reply"),
    "instruction": ("prompt", "question", "query"),
    "input": ("context",),
    "output": ("response", "answer", "completion", "reply"),
    "messages": ("conversations", "conversation", "dialogue"),
    "tokens": ("words",),
    "tags": ("ner_tags", "pos_tags", "labels"),
}


@dataclass(frozen=True)
class ColumnFault:
    """A role that finds no column. nearest: the column probably meant; allowed: the columns that the data has."""

    role: str
    column: str
    message: str
    nearest: str
    allowed: str


def nearest_name(name: str, names: Iterable[str]) -> str:
    """The name most like `name`, or "" if none is."""
    by_folded = {other.casefold(): other for other in names}
    close = get_close_matches(name.casefold(), list(by_folded), n=1, cutoff=0.6)
    return by_folded[close[0]] if close else ""


@dataclass(frozen=True)
class Wanted:
    """What is asked of a source's columns. columns: role -> column, as the recipe maps them. required: roles of every
    row, each entry a tuple of alternatives (the card's, or fewer: prediction needs no labels).
    """

    card: TaskCard
    columns: Mapping[str, str]
    required: Required

    def resolve(self, seen: Sequence[str], where: str) -> dict[str, str]:
        """{role: column} for the roles that the data has. seen: its columns, in order. Raises: UserError."""
        mapping, faults = resolve_columns(self.columns, seen, self.card, self.required)
        if faults:
            told = [fault.message + (f" (did you mean {fault.nearest}?)" if fault.nearest else "") for fault in faults]
            remedy = f"The data has the columns {', '.join(seen)}; data.columns maps roles to them."
            raise UserError("; ".join(told), where=where, remedy=remedy)
        return mapping


def resolve_columns(
    explicit: Mapping[str, str], seen: Sequence[str], card: TaskCard, required: Required
) -> tuple[dict[str, str], list[ColumnFault]]:
    """({role: column} for the roles that the data has, what is wrong). seen: the columns of the data, in order."""
    mapping: dict[str, str] = {}
    faults: list[ColumnFault] = []
    allowed = ", ".join(seen)
    for role, column in explicit.items():
        if role not in card.columns:
            continue  # an unknown role is the recipe's fault, not this file's
        if column in seen:
            mapping[role] = column
        else:
            message = f"the data has no column {column!r}"
            faults.append(ColumnFault(role, column, message, nearest_name(column, seen), allowed))
    taken = set(explicit.values()) | {role for role in card.columns if role not in explicit}
    for role in card.columns:
        if role in explicit:
            continue
        if role in seen and role not in explicit.values():
            mapping[role] = role
            continue
        alias = next((name for name in ALIASES.get(role, ()) if name in seen and name not in taken), None)
        if alias is not None:
            mapping[role] = alias
            taken.add(alias)
    for roles in required:
        if not any(role in mapping for role in roles) and not any(fault.role in roles for fault in faults):
            wanted = " or ".join(roles)
            near = next((name for role in roles if (name := nearest_name(role, seen))), "")
            message = f"no column for {wanted}; map it: data.columns: {{{roles[0]}: <column>}}"
            faults.append(ColumnFault(roles[0], roles[0], message, near, allowed))
    return mapping, faults


def apply_roles(row: Mapping[str, Any], mapping: Mapping[str, str]) -> dict[str, Any]:
    """The row under its roles; other columns keep their names; a null is no value at all."""
    under_roles = {role: row[column] for role, column in mapping.items() if row.get(column) is not None}
    sources = set(mapping.values())
    for name, value in row.items():
        if name not in mapping and name not in sources and value is not None:
            under_roles[name] = value
    return under_roles


def check_required(row: Mapping[str, Any], required: Required, mapping: Mapping[str, str]) -> None:
    """Raises: BadRow if a required role has no value in this row (under its roles)."""
    for roles in required:
        if not any(row.get(role) is not None for role in roles):
            columns = " or ".join(mapping.get(role, role) for role in roles)
            raise BadRow(f"no value in column {columns}")
