"""Maps the columns of the data to the roles of a task: by the recipe, by the role's own name, or by a known alias."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.values import is_missing
from finetune.errors import UserError
from finetune.recipe.card import TaskCard
from finetune.recipe.column_pairs import PAIRS, find_pairs
from finetune.recipe.roles import role_of

Required = tuple[tuple[str, ...], ...]  # a row must have at least one role of each entry

SHOWN_NESTED = 20  # dotted names in a message
SAMPLED_ROWS = 1_000  # rows read to find the columns of a file without a header

_COCO = ("images", "annotations", "categories")


@dataclass(frozen=True)
class ColumnFault:
    """A role without a column. nearest: the column probably meant, or "". allowed: the columns of the data."""

    role: str
    column: str
    message: str
    nearest: str
    allowed: str


def nearest_name(name: str, names: Iterable[str]) -> str:
    """The name most similar to `name`, ignoring case, or "" if none is similar."""
    by_folded = {other.casefold(): other for other in names}
    close = get_close_matches(name.casefold(), list(by_folded), n=1, cutoff=0.6)
    return by_folded[close[0]] if close else ""


@dataclass(frozen=True)
class ColumnSpec:
    """The columns that a task needs from a source.

    columns: role -> column, as the recipe maps them.
    required: roles in which every row must have a value, each entry a tuple of alternatives. Usually those of the card;
    fewer where no labels are needed, as in prediction, or where a row may have none.
    present: roles for which the source must have a column; None: the same.
    """

    card: TaskCard
    columns: Mapping[str, str]
    required: Required
    present: Required | None = None

    def resolve(
        self, available: Sequence[str], where: str, *, nested: Sequence[str] = (), hint: str = ""
    ) -> dict[str, str]:
        """{role: column} for the roles that the data has.

        available: the columns of the data, in order. where: name of the source, for the error message.
        nested: dotted names of values inside of columns, such as translation.en. hint: put before the remedy.
        Raises: UserError if a mapped or required column is missing.
        """
        mapping, faults = resolve_columns(
            self.columns, available, self.card, self.required if self.present is None else self.present, nested
        )
        if faults:
            messages = [f.message + (f" (did you mean {f.nearest}?)" if f.nearest else "") for f in faults]
            remedy = f"The data has the columns {', '.join(available)}; map roles to them with data.columns."
            raise UserError("; ".join(messages), where=where, remedy=f"{hint} {remedy}".lstrip())
        return mapping


def resolve_columns(
    explicit: Mapping[str, str],
    available: Sequence[str],
    card: TaskCard,
    required: Required,
    nested: Sequence[str] = (),
) -> tuple[dict[str, str], list[ColumnFault]]:
    """({role: column} for the roles that the data has, faults).

    explicit: role -> column, as the recipe maps them. available: the columns of the data, in order. nested: dotted names of
    values inside of columns, which only `explicit` can name.
    """
    mapping, faults = _map_explicitly(explicit, available, card, nested)
    columns = plain_names(available, explicit.values())
    found = _map_by_name(explicit, list(columns), card)
    mapping.update({role: columns[name] for role, name in found.items()})
    blamed = {fault.role for fault in faults}
    for roles in required:
        if not any(role in mapping for role in roles) and blamed.isdisjoint(roles):
            faults.append(_lacking(roles, available, nested, card.rows.column_hints))
            blamed.add(roles[0])
    return mapping, faults


def plain_names(available: Sequence[str], mapped: Collection[str] = ()) -> dict[str, str]:
    """{name to be recognized: column}: Instruction is instruction, unless it is `mapped`, or two columns are called so."""
    plain = {name: name if name in mapped else name.strip().casefold() for name in available}
    counts = Counter(plain.values())
    return {(name if counts[name] == 1 and name not in available else column): column for column, name in plain.items()}


def _map_by_name(explicit: Mapping[str, str], available: Sequence[str], card: TaskCard) -> dict[str, str]:
    """{role: name} for the roles that the recipe does not map, by pairs, by the role's own name, or by an alias."""
    mapping: dict[str, str] = {}
    pairs = find_pairs(card.rows.columns, explicit, available)
    mapping.update(pairs)
    taken = {*explicit.values(), *pairs.values(), *(role for role in card.rows.columns if role not in explicit)}
    paired = {role for pair in PAIRS if set(pair) <= set(card.rows.columns) for role in pair} if pairs else set()
    for role in card.rows.columns:
        if role in explicit or role in pairs:
            continue
        if role in available and role not in explicit.values() and role not in pairs.values():
            mapping[role] = role
            continue
        if role in paired and not (role == "prompt" and "chosen" in pairs):
            continue
        alias = next((name for name in role_of(role).aliases if name in available and name not in taken), None)
        if alias is not None:
            mapping[role] = alias
            taken.add(alias)
    return mapping


def _map_explicitly(
    explicit: Mapping[str, str], available: Sequence[str], card: TaskCard, nested: Sequence[str]
) -> tuple[dict[str, str], list[ColumnFault]]:
    """The roles that the recipe maps, and faults for columns that the data does not have."""
    mapping: dict[str, str] = {}
    faults: list[ColumnFault] = []
    for role, column in explicit.items():
        if role not in card.rows.columns:
            continue  # an unknown role is a fault of the recipe and reported there
        if column in available or column in nested:
            mapping[role] = column
            continue
        known = [*available, *nested]
        shown = ", ".join(known if "." in column else available)
        message = f"the data has no column {column!r}"
        faults.append(ColumnFault(role, column, message, nearest_name(column, known), shown))
    return mapping, faults


def _lacking(
    roles: Sequence[str], available: Sequence[str], nested: Sequence[str], hints: Mapping[str, str]
) -> ColumnFault:
    """No column for any of `roles`. Values inside of columns, such as translation.en, can be mapped, too."""
    hint = next((hint for column, hint in hints.items() if column in available), "")
    if set(_COCO) <= set(available):
        message, near = f"no column for {' or '.join(roles)}: this is a COCO file; set the source's `format: coco`", ""
    else:
        nearest = ((role, name) for role in roles if (name := nearest_name(role, available)))
        role, near = next(nearest, (roles[0], ""))
        message = (
            f"no column for {' or '.join(roles)}; map it: data.columns: {{{role}: <column>}}{hint and f'. {hint}'}"
        )
    return ColumnFault(roles[0], roles[0], message, near, ", ".join([*available, *nested[:SHOWN_NESTED]]))


def value_at(row: Mapping[str, Any], column: str) -> Any:
    """The value of a column; of translation.en the value inside of the column translation. None if there is none."""
    value = row.get(column)
    if value is None and "." in column:
        value = row
        for part in column.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
    return value


def apply_roles(row: Mapping[str, Any], mapping: Mapping[str, str]) -> dict[str, Any]:
    """The row with roles in place of the mapped column names; other columns keep their names; nulls and NaN are left out."""
    under_roles = {role: value for role, column in mapping.items() if not is_missing(value := value_at(row, column))}
    sources = set(mapping.values())
    for name, value in row.items():
        if name not in mapping and name not in sources and not is_missing(value):
            under_roles[name] = value
    return under_roles


def check_required(row: Mapping[str, Any], required: Required, mapping: Mapping[str, str]) -> None:
    """Check a row whose keys are roles. Raises: BadRow if a required role has no value."""
    for roles in required:
        if not any(row.get(role) is not None for role in roles):
            columns = " or ".join(mapping.get(role, role) for role in roles)
            have = ", ".join(mapping.get(name, name) for name in row if row[name] is not None) or "nothing"
            raise BadRow(f"no value in column {columns}" + (f"; the row has {have}" if len(roles) > 1 else ""))
