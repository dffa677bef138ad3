"""Which columns of new data hold what a model is asked: as the user says, as the recipe says, or by their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from finetune.data.columns import nearest_name, plain_names, resolve_columns
from finetune.data.sources.raw_rows import RawRows
from finetune.errors import UserError
from finetune.recipe.card import TaskCard
from finetune.recipe.column_pairs import PAIRS

FLAG = "--columns"


@dataclass(frozen=True)
class ColumnChoice:
    """flags: role -> column, as the user says; each must be there. recipe: role -> column, as the run's recipe says, where
    the data has these columns. line_role: the role of lines of plain text; "": none.
    """

    flags: Mapping[str, str] = field(default_factory=dict)
    recipe: Mapping[str, str] = field(default_factory=dict)
    line_role: str = ""


def parse_columns(texts: Sequence[str]) -> dict[str, str]:
    """["text=review", "label=stars"] -> {"text": "review", "label": "stars"}. Raises: UserError for another form."""
    found: dict[str, str] = {}
    for text in texts:
        role, mark, column = text.partition("=")
        if not mark or not role or not column or role in found:
            what = f"{role} is given twice" if role in found else f"{text!r} is not ROLE=COLUMN"
            raise UserError(what, where=FLAG, remedy=f"Write {FLAG} text=review, once for each role.")
        found[role] = column
    return found


def choose_columns(rows: RawRows, card: TaskCard, choice: ColumnChoice) -> dict[str, str]:
    """{role: column} for the roles that the rows have. card: of rows that are asked (TaskCard.for_asking).

    Raises: UserError for a role that is none, or a column that is missing, with the nearest name.
    """
    for role in choice.flags:
        if role not in card.rows.columns:
            near = nearest_name(role, card.rows.columns)
            hint = f"Did you mean {near}? " if near else ""
            raise UserError(
                f"{card.name} has no role {role!r}",
                where=FLAG,
                remedy=f"{hint}The roles are {', '.join(card.rows.columns)}.",
            )
    available = list(rows.columns)
    explicit = {
        role: column
        for role, column in choice.recipe.items()
        if column in {*available, *rows.nested} and column not in choice.flags.values()
    }
    explicit.update(choice.flags)
    if rows.lines and choice.line_role and not choice.flags:
        explicit[choice.line_role] = available[0]
    explicit = {role: column for role, column in explicit.items() if role in card.rows.columns}
    mapping, faults = resolve_columns(explicit, available, card, card.rows.required, rows.nested)
    if faults and not set(choice.flags) & {fault.role for fault in faults}:
        for guess in _guesses(card, available, mapping):
            again, others = resolve_columns({**explicit, **guess}, available, card, card.rows.required, rows.nested)
            if not others:
                return again
    if faults:
        raise _missing(rows, card, faults[0].role, faults[0].column, faults[0].nearest, choice)
    return mapping


def _guesses(card: TaskCard, available: Sequence[str], mapping: Mapping[str, str]) -> Sequence[dict[str, str]]:
    """Further columns by their names: those of what is asked in pairs whose other half, the answer, is not there."""
    columns = plain_names([column for column in available if column not in mapping.values()])
    return [
        {pair[0]: columns[asked]}
        for pair, names in PAIRS.items()
        if pair[0] in card.rows.columns and pair[0] not in mapping
        for asked, _, _ in names
        if asked in columns
    ]


def _missing(rows: RawRows, card: TaskCard, role: str, column: str, nearest: str, choice: ColumnChoice) -> UserError:
    """The error for a column that is not there."""
    roles = next((roles for roles in card.rows.required if role in roles), (role,))
    wanted = f"the data has no column {column!r}" if role in choice.flags else f"no column for {' or '.join(roles)}"
    if role not in choice.flags and role in choice.recipe:
        wanted += f": the model was trained on {choice.recipe[role]!r}"
        nearest = nearest_name(choice.recipe[role], rows.columns) or nearest
    listed = ", ".join(rows.columns[:40]) + (", ..." if len(rows.columns) > 40 else "")
    remedy = f"The data has the columns {listed}; say which one it is: {FLAG} {roles[0]}={nearest or 'COLUMN'}"
    return UserError(
        wanted + (f" (did you mean {nearest}?)" if nearest else ""),
        where=rows.name,
        remedy=f"{rows.hint} {remedy}".lstrip(),
    )
