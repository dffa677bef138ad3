"""What all kinds of classification share: which classes there are, how they fit a trained head, answers and scores.

Shapes: B examples, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.data.label_forms import NAMES, LabelForm, parse_list
from finetune.data.labels import Labels, label_key
from finetune.data.prepare.label_survey import (
    Kind,
    class_names,
    column_name,
    declared_names,
    label_form,
    label_notes,
    labels_by_class,
    look_alike_notes,
    whole_table,
)
from finetune.data.table import Table
from finetune.errors import UserError
from finetune.recipe.recipe import Recipe
from finetune.tasks.facts import Facts


@dataclass(frozen=True)
class Classes:
    """names: of the classes by index, as people and the saved model see them. lookup: from the data's labels to indices.

    The two differ where the data writes 0, 1 and the recipe or the checkpoint names them: "negative", "positive".
    """

    names: list[str]
    lookup: Labels

    def to_dict(self) -> dict[str, Any]:
        """{"names": ..., "written": ..., "form": ...}: written: the labels as the data writes them, by index. form: how
        several labels of a row are written.
        """
        return {"names": list(self.names), "written": list(self.lookup.names), "form": self.lookup.form.to_dict()}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Classes:
        """What `to_dict` gave; an earlier version had no form."""
        form = LabelForm.from_dict(stored["form"]) if "form" in stored else NAMES
        return cls(list(stored["names"]), Labels(stored["written"], form))


def label_settings(names: Sequence[str]) -> dict[str, Any]:
    """What a model's configuration takes: ["no", "yes"] -> {"id2label": {0: "no", 1: "yes"}, "label2id": {...}}."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def decide_classes(
    tables: Mapping[str, Table],
    stated: Sequence[str],
    trained: Sequence[str] | None,
    *,
    where: str,
    facts: Facts,
    role: str = "label",
) -> Classes:
    """The classes of a run with one label per row. stated: options.labels. trained: labels of the checkpoint's own head,
    None if it has none or the recipe asks for a new one. where: the model's name, for the error.

    A trained head keeps its classes and their order if those of the data are among them; generated names
    (LABEL_0, ...) fit any data with as many classes. Classes that look alike become a note in `facts`.
    Raises: UserError if the classes of the data do not fit the trained head.
    """
    classes = choose_classes(class_names(tables, role), stated, trained, where=where)
    column, names = column_name(tables["train"], role), classes.lookup.names
    facts.notes += look_alike_notes(names, column)
    lists = [name for name in names if parse_list(name) is not None]
    if 2 * len(lists) > len(names):
        facts.notes.append(
            f"{column}: {len(lists):,} of {len(names):,} classes look like lists, such as {lists[0]!r}: each is one class; "
            "options.problem: multi_label reads the labels in them"
        )
    return classes


def decide_label_sets(
    tables: Mapping[str, Table],
    stated: Sequence[str],
    trained: Sequence[str] | None,
    *,
    separator: str,
    where: str,
    facts: Facts,
) -> Classes:
    """As decide_classes, for rows with any number of labels; how they are written becomes a note in `facts`.

    separator: options.label_separator.
    Raises: UserError as decide_classes does, and for vectors whose length is not the number of names.
    """
    whole, column = whole_table(tables), column_name(tables["train"], "label")
    form, described = label_form(whole, "label", stated=stated, separator=separator)
    if form.length:
        names = list(stated) or declared_names(whole, "label")
        classes = _classes_by_position(form, names, trained, where=where, column=column)
    else:
        classes = choose_classes(class_names(tables, kind=form), stated, trained, where=where, form=form)
    facts.notes.append(f"{described}; classes {listed(classes.names)}")
    facts.notes += look_alike_notes(classes.lookup.names, column)
    return classes


def _classes_by_position(
    form: LabelForm, stated: Sequence[str], trained: Sequence[str] | None, *, where: str, column: str
) -> Classes:
    length = form.length
    if stated and len(stated) != length:
        raise UserError(
            f"the column {column} holds vectors of {length} values, but options.labels has {listed(stated)}",
            where=where,
            remedy="Give one name for each position, in order.",
        )
    if trained is not None and (
        len(trained) != length or (stated and not _generated(trained) and set(stated) != set(trained))
    ):
        raise _misfit(list(stated) or [f"LABEL_{index}" for index in range(length)], trained, where)
    names = list(stated or trained or [f"LABEL_{index}" for index in range(length)])
    return Classes(names, Labels(names, form))


def describe_labels(facts: Facts, table: Table, classes: Classes, *, role: str = "label", kind: Kind = None) -> None:
    """How many of a split's rows each class has; notes on how the labels are written, and how many rows have none.

    kind: None for one label per row.
    """
    facts.notes += label_notes(table, role, classes.lookup, kind=kind)
    facts[f"{table.name} classes"] = labels_by_class(table, role, classes.lookup, kind=kind)


def choose_classes(
    in_data: Sequence[str],
    stated: Sequence[str],
    trained: Sequence[str] | None,
    *,
    where: str,
    form: LabelForm = NAMES,
) -> Classes:
    """As decide_classes, for class names that were collected already."""
    names = list(stated or in_data)
    if trained is not None:
        if _generated(trained) and len(trained) == len(names):
            return Classes(names, _lookup(names, in_data, form))
        if not _fits(names, trained) or (stated and set(stated) != set(trained)):
            raise _misfit(names, trained, where)
        names = list(trained)
    return Classes(names, _lookup(names, in_data, form))


def _generated(trained: Sequence[str]) -> bool:
    return list(trained) == [f"LABEL_{index}" for index in range(len(trained))]


def _misfit(names: Sequence[str], trained: Sequence[str], where: str) -> UserError:
    return UserError(
        f"the labels do not fit the head that {where} was trained with\n"
        f"  data   {listed(names)}\n  model  {listed(trained)}",
        remedy="Set options.new_head: true to train a new head, or write the labels as the model does.",
    )


def _keys(names: Iterable[str]) -> set[str]:
    return {label_key(name) for name in names}


def _fits(in_data: Sequence[str], names: Sequence[str]) -> bool:
    return _keys(in_data) <= _keys(names) or _are_numbers(in_data, len(names))


def _lookup(names: Sequence[str], in_data: Sequence[str], form: LabelForm) -> Labels:
    """By name; by index where the data writes numbers below C, none of which is a name."""
    if not _keys(in_data) & _keys(names) and _are_numbers(in_data, len(names)):
        return Labels([str(index) for index in range(len(names))], form)
    return Labels(names, form)


def plain_lookup(names: Sequence[str]) -> Labels:
    """For data that is not known yet: by name; by index where the names are generated (LABEL_0, ...)."""
    return Labels([str(index) for index in range(len(names))] if _generated(names) else names)


def _are_numbers(in_data: Iterable[str], count: int) -> bool:
    return all(key.isdecimal() and int(key) < count for key in map(label_key, in_data))


def listed(names: Sequence[str]) -> str:
    """How many names there are, and the first twelve: "3: anger, joy, love"."""
    shown = ", ".join(map(str, names[:12]))
    return f"{len(names)}: {shown}" + (", ..." if len(names) > 12 else "")


def trained_labels(recipe: Recipe, config: Any, suffix: str) -> list[str] | None:
    """Labels of a checkpoint whose architecture ends with `suffix` ("ForSequenceClassification"), in the order of its head.
    None where the head is a new one: for a body, for random weights, and with options.new_head.
    """
    options: Any = recipe.options
    if recipe.model.init != "pretrained" or options.new_head:
        return None
    if not any(str(name).endswith(suffix) for name in config.architectures or ()):
        return None
    return [str(config.id2label[index]) for index in sorted(config.id2label)]
