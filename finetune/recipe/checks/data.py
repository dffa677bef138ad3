"""Contradictions about the data: packing, validation rows, roles of columns."""

from __future__ import annotations

from collections.abc import Iterator

from finetune.errors import Fault
from finetune.recipe.checks.context import CheckContext
from finetune.recipe.data import DataSection
from finetune.recipe.document import KeyPath
from finetune.recipe.faults import nearest
from finetune.recipe.paths import path_keys


def check_packing(context: CheckContext) -> Iterator[Fault]:
    """A kind of packing that the task supports."""
    packing, default = context.recipe.data.packing, DataSection.model_fields["packing"].default
    known = (default, *context.card.batches.packings)
    if packing not in known:
        yield context.fault("data.packing", f"not supported by the task {context.card.name}", allowed=", ".join(known))


def check_validation(context: CheckContext) -> Iterator[Fault]:
    """One source of validation data, and at least one where something needs it."""
    data = context.recipe.data
    if data.validation and data.validation_fraction:
        yield context.fault(
            "data.validation_fraction",
            "given beside data.validation: there is one source of validation data",
            allowed="one of the two",
            on=("data.validation",),
        )
    if context.recipe.training.early_stopping and not data.has_validation:
        yield context.fault(
            "training.early_stopping",
            "needs validation data",
            allowed="data.validation, or data.validation_fraction: 0.1",
            on=("data.validation", "data.validation_fraction"),
        )


def check_columns(context: CheckContext) -> Iterator[Fault]:
    """`columns` maps roles of the task. Whether the data has the columns is checked when it is opened."""
    roles = list(context.card.rows.columns)
    homes: list[KeyPath] = [("data", "columns")]
    homes += [
        (*path[:-1], "columns") for path in path_keys(context.draft) if path[0] == "data" and path[-1] == "source"
    ]
    for home in homes:
        columns = context.draft.get(home, {})
        for role in columns if isinstance(columns, dict) else ():
            if role in roles:
                continue
            swapped = columns[role] in roles
            message = f"not a role of the task {context.card.name}"
            near = f"{columns[role]}: {role} (role first, then the data's column)" if swapped else nearest(role, roles)
            yield context.fault((*home, role), message, allowed=", ".join(roles), near=near)
