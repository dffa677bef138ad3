"""What is wrong with the data, as far as a quick look tells: before torch is imported or a process started."""

from __future__ import annotations

from collections.abc import Iterator

from finetune.data.columns import Wanted, nearest_name, resolve_columns
from finetune.data.sources.locate import BUILTIN, locate, shown
from finetune.data.sources.peek import columns_of
from finetune.errors import Fault, UserError
from finetune.recipe.card import TaskCard
from finetune.recipe.data import SourceSection
from finetune.recipe.recipe import Recipe

HERE = ""  # the caller knows the recipe's line for a key


def check_data(recipe: Recipe, card: TaskCard) -> list[Fault]:
    """Every fault that shows in names, headers and first rows; no file is read to its end, no hub asked.

    where is "": the caller finds the recipe's line by key, such as data.train.0.source or data.columns.text. One fault
    a key: a column that train and validation both lack is told once.
    """
    faults: dict[str, Fault] = {}
    for fault in _every_fault(recipe, card):
        faults.setdefault(fault.key, fault)
    return list(faults.values())


def _every_fault(recipe: Recipe, card: TaskCard) -> Iterator[Fault]:
    data = recipe.data
    yield from _unknown_roles("data.columns", data.columns, card)
    for name, sources in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        for index, source in enumerate(sources):
            key = f"data.{name}.{index}"
            yield from _unknown_roles(f"{key}.columns", source.columns, card)
            wanted = Wanted(card, {**data.columns, **source.columns}, card.required)
            try:
                yield from _source_faults(name, key, source, wanted)
            except UserError as error:
                place = f"{error.where}: " if error.where and error.where != source.source else ""
                yield Fault(HERE, f"{key}.source", f"{place}{error.what}. {error.remedy}", source.source)


def _unknown_roles(key: str, columns: dict[str, str], card: TaskCard) -> Iterator[Fault]:
    for role, column in columns.items():
        if role not in card.columns:
            message = f"the task {card.name} has no role {role!r}"
            yield Fault(
                HERE, f"{key}.{role}", message, column, ", ".join(card.columns), nearest_name(role, card.columns)
            )


def _source_faults(name: str, key: str, source: SourceSection, wanted: Wanted) -> Iterator[Fault]:
    found = locate(source)
    if found.format == "builtin":
        yield from _builtin_faults(name, key, source, wanted)
    for path in found.files:
        yield from _column_faults(key, source, wanted, columns_of(path, found.format, source), shown(path))


def _builtin_faults(name: str, key: str, source: SourceSection, wanted: Wanted) -> Iterator[Fault]:
    from finetune.data.sources.builtin import BUILTINS

    called = source.source.removeprefix(BUILTIN)
    found = BUILTINS.get(called)
    if found is None:
        allowed, near = ", ".join(BUILTIN + each for each in BUILTINS), nearest_name(called, BUILTINS)
        yield Fault(HERE, f"{key}.source", "no such built-in set", source.source, allowed, near and BUILTIN + near)
    elif (source.split or name) not in found.splits:
        split = source.split or name
        near = nearest_name(split, found.splits)
        yield Fault(
            HERE, f"{key}.split", f"{source.source} has no split {split!r}", split, ", ".join(found.splits), near
        )
    else:
        yield from _column_faults(key, source, wanted, list(found.columns), source.source)


def _column_faults(key: str, source: SourceSection, wanted: Wanted, seen: list[str], where: str) -> Iterator[Fault]:
    _, faults = resolve_columns(wanted.columns, seen, wanted.card, wanted.required)
    for fault in faults:
        home = f"{key}.columns" if fault.role in source.columns else "data.columns"
        value = fault.column if fault.role in wanted.columns else ""
        yield Fault(HERE, f"{home}.{fault.role}", f"{where}: {fault.message}", value, fault.allowed, fault.nearest)
