"""Quick checks of the data of a recipe, before torch is imported or a process is started."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from finetune.data.columns import ColumnSpec, nearest_name, resolve_columns
from finetune.data.sources.locate import BUILTIN, locate
from finetune.data.sources.located import display_path
from finetune.data.sources.peek import Head, head_of
from finetune.errors import Fault, UserError
from finetune.recipe.card import TaskCard
from finetune.recipe.data import SourceSection
from finetune.recipe.recipe import Recipe

MAX_FILES = 100  # of one source; the others are looked at when they are read
UNLOCATED = ""  # the caller knows the line of a key in the recipe


def check_data(recipe: Recipe, card: TaskCard, *, as_split: str = "") -> list[Fault]:
    """All faults that are visible in names, headers and first rows. No file is read to its end; the hub is not contacted.

    as_split: the split whose files are looked for in folders, and whose name hub and built-in sets default to. Default: the
    key of the source.

    `where` of a fault is "": the caller finds the line in the recipe by the key, such as data.train.0.source or
    data.columns.text. There is at most one fault per key: a column missing in train and validation is reported once.
    """
    faults: dict[str, Fault] = {}
    for fault in _all_faults(recipe, card, as_split):
        faults.setdefault(fault.key, fault)
    return list(faults.values())


def _all_faults(recipe: Recipe, card: TaskCard, as_split: str) -> Iterator[Fault]:
    data = recipe.data
    yield from _unknown_roles("data.columns", data.columns, card)
    for name, sources in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        for index, source in enumerate(sources):
            key = f"data.{name}.{index}"
            yield from _unknown_roles(f"{key}.columns", source.columns, card)
            spec = ColumnSpec(card, {**data.columns, **source.columns}, card.rows.required)
            try:
                yield from _source_faults(as_split or name, key, source, spec)
            except UserError as error:
                prefix = f"{error.where}: " if error.where and error.where != source.source else ""
                yield Fault(
                    UNLOCATED, f"{key}.source", f"{prefix}{error.what.rstrip('.')}. {error.remedy}", source.source
                )


def _unknown_roles(key: str, columns: dict[str, str], card: TaskCard) -> Iterator[Fault]:
    for role, column in columns.items():
        if role not in card.rows.columns:
            message = f"the task {card.name} has no role {role!r}"
            yield Fault(
                UNLOCATED,
                f"{key}.{role}",
                message,
                column,
                ", ".join(card.rows.columns),
                nearest_name(role, card.rows.columns),
            )


def _source_faults(name: str, key: str, source: SourceSection, spec: ColumnSpec) -> Iterator[Fault]:
    located = locate(source, name)
    if located.format == "builtin":
        yield from _builtin_faults(name, key, source, spec)
    source = located.applied_to(source)
    for path in _sampled(located.files):
        yield from _column_faults(key, source, spec, head_of(path, located.format, source), display_path(path))


def _sampled(files: Sequence[Path]) -> Sequence[Path]:
    """All files, or 100 of many, the first and the last among them."""
    if len(files) <= MAX_FILES:
        return files
    return [files[index * (len(files) - 1) // (MAX_FILES - 1)] for index in range(MAX_FILES)]


def _builtin_faults(name: str, key: str, source: SourceSection, spec: ColumnSpec) -> Iterator[Fault]:
    from finetune.data.sources.builtin import BUILTINS

    set_name = source.source.removeprefix(BUILTIN)
    builtin = BUILTINS.get(set_name)
    if builtin is None:
        allowed, near = ", ".join(BUILTIN + known for known in BUILTINS), nearest_name(set_name, BUILTINS)
        yield Fault(
            UNLOCATED, f"{key}.source", "no such built-in dataset", source.source, allowed, near and BUILTIN + near
        )
    elif (source.split or name) not in builtin.splits:
        split = source.split or name
        near = nearest_name(split, builtin.splits)
        yield Fault(
            UNLOCATED, f"{key}.split", f"{source.source} has no split {split!r}", split, ", ".join(builtin.splits), near
        )
    else:
        yield from _column_faults(key, source, spec, Head(list(builtin.columns), [], []), source.source)


def _column_faults(key: str, source: SourceSection, spec: ColumnSpec, head: Head, where: str) -> Iterator[Fault]:
    _, faults = resolve_columns(spec.columns, head.columns, spec.card, spec.required, head.nested)
    hint = f". {head.hint}" if head.hint else ""
    for fault in faults:
        section = f"{key}.columns" if fault.role in source.columns else "data.columns"
        value = fault.column if fault.role in spec.columns else ""
        yield Fault(
            UNLOCATED, f"{section}.{fault.role}", f"{where}: {fault.message}{hint}", value, fault.allowed, fault.nearest
        )
