"""How the labels of a column are written, decided once from all its values. See label_forms.py for the forms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune.data.label_forms import BLANK, LIST, NAMES, SEPARATORS, LabelForm, bit_of, parse_list, split_labels
from finetune.errors import UserError
from finetune.units import format_number


def decide_form(
    values: Iterable[Any],
    *,
    stated: Collection[str],
    separator: str,
    column: str,
    same: Callable[[Any], Any] = str,
    declared: Sequence[str] = (),
) -> tuple[LabelForm, str]:
    """(how the labels of a column are written, a sentence that says it), from all its values.

    stated: the names of the classes, if the recipe gives them: the separator is the one that yields them. separator:
    "from_data", "none", or the separator that the recipe gives. same: text of a label -> what names are compared by.
    declared: names of the classes in a typed file, which has put the first two in place of 0 and 1.
    Raises: UserError if every row is a list of one value, 0 or 1, which may be a vector or a name.
    """
    bits = tuple(declared[:2])
    survey = _ColumnSurvey({same(name) for name in stated}, same, _VectorEvidence(bits))
    for value in values:
        survey.add(value)
    mark = survey.separator(separator)
    evidence = survey.split[mark] if mark in survey.split and survey.texts > survey.lists_as_text else survey.lists
    length = evidence.length()
    if {"0", "1"} <= survey.names or (declared and length != len(declared)):
        length = 0
    if evidence.filled and evidence.single == evidence.filled and evidence is survey.lists:
        if not stated:
            raise UserError(
                f"the column {column} holds lists of one value, 0 or 1: vectors of one class, or the classes 0 and 1?",
                remedy="Set options.labels: [NAME] for one class, or [NAME, NAME] for two.",
            )
        length = 1 if len(stated) == 1 and survey.names != {"0"} and survey.names != {"1"} else 0
    form = LabelForm(mark if mark != BLANK or length else "", length, bits if length else ())
    return form, f"{column}: {_describe(form, survey.holding[mark], survey.texts, survey.examples.get(mark, ''))}"


def _is_share(item: Any) -> bool:
    return isinstance(item, (int, float)) and not isinstance(item, bool) and 0 <= item <= 1


@dataclass
class _VectorEvidence:
    """What speaks for vectors among the lists of a column (or its texts, split at one separator)."""

    names: Sequence[str] = ()  # of 0 and 1, if they have any
    filled: int = 0  # rows with an item
    single: int = 0  # of one value, 0 or 1
    repeated: int = 0  # of 0 and 1 with one of them more than once: no list of names is written so
    lengths: Counter[int] = field(default_factory=Counter)  # of lists of two or more, all 0 or 1

    def add(self, items: list[Any]) -> None:
        if not items:
            return
        self.filled += 1
        bits = [bit_of(item, self.names) for item in items]
        if len(items) > 1 and None in bits and all(map(_is_share, items)):  # a vector, and a bad row: no list of names
            self.lengths[len(items)] += 1
            return
        if None in bits or (self.names and len(bits) < 2):
            return
        if len(bits) == 1:
            self.single += 1
        else:
            self.lengths[len(bits)] += 1
            self.repeated += len(set(bits)) < len(bits)

    def length(self) -> int:
        """The length of the vectors, 0 if these are none: more than half are 0 and 1 only and of one length, and one of
        them repeats a value, or all are like it: [0, 1] and [1, 0] as sets of names would be the same for every row.
        """
        if not self.lengths:
            return 0
        length, count = self.lengths.most_common(1)[0]
        return length if 2 * count > self.filled and (self.repeated or count == self.filled) else 0


@dataclass
class _ColumnSurvey:
    """What the labels of a column look like, value by value, under each separator that they may have.

    names: of the classes that the recipe gives, as `same` compares them. lists: the values that are lists, or lists written
    as text.
    """

    names: set[Any]
    same: Callable[[Any], Any]
    lists: _VectorEvidence
    split: dict[str, _VectorEvidence] = field(
        default_factory=lambda: {mark: _VectorEvidence() for mark in (*SEPARATORS, BLANK)}
    )
    texts: int = 0
    lists_as_text: int = 0
    holding: Counter[str] = field(default_factory=Counter)  # separator -> texts that have it
    fitting: Counter[str] = field(default_factory=Counter)  # separator -> texts that it splits into `names`
    examples: dict[str, str] = field(default_factory=dict)  # separator -> the first text that has it

    def add(self, value: Any) -> None:
        """Count the label of one row."""
        if isinstance(value, str):
            if text := value.strip():
                self._add_text(text)
        else:
            items = split_labels(value, NAMES)
            if not isinstance(value, (int, float)):
                self.lists.add(items)

    def _add_text(self, text: str) -> None:
        self.texts += 1
        if (parsed := parse_list(text)) is not None:
            self.lists_as_text += 1
            self.lists.add(parsed)
            self.examples.setdefault(LIST, text)
            return
        for mark in ("", *SEPARATORS, BLANK):
            parts = [part for part in text.split(mark) if part.strip()] if mark else [text]
            self.fitting[mark] += bool(self.names) and all(self.same(part) in self.names for part in parts)
            if mark:
                self.split[mark].add(parts)
            if mark and mark in text:
                self.holding[mark] += 1
                self.examples.setdefault(mark, text)

    def separator(self, asked: str) -> str:
        """The separator of the column: the one that is asked for, LIST, BLANK, one of SEPARATORS, or "" for none."""
        if asked != "from_data":
            return "" if asked == "none" else asked
        if 2 * self.lists_as_text > self.texts:
            return LIST
        best = max(("", *SEPARATORS), key=lambda mark: self.fitting[mark])  # the first of equals
        if not self.fitting[best]:
            best = next((mark for mark in SEPARATORS if self.holding[mark]), "")
        blank = self.split[BLANK]
        if not best and blank.length() and blank.lengths.total() == blank.filled:
            return BLANK
        return best or (
            "" if self.holding["|"] else "|"
        )  # texts without any mark: the default for those of other splits


def _describe(form: LabelForm, holding: int, texts: int, example: str) -> str:
    example = example if len(example) <= 60 else example[:57] + "..."
    if form.length:
        written = f", written as text such as {example!r}" if example else ""
        return f"vectors of {format_number(form.length, 'value')}, 0 or 1{written}: classes by position"
    if form.separator == LIST:
        return f"lists of labels, written as text such as {example!r}"
    if form.separator and holding:
        return (
            f"{holding:,} of {texts:,} texts hold several labels, split at {form.separator!r}, such as {example!r} "
            "(options.label_separator: none reads each text as one label)"
        )
    return "each text is one label" if texts else "lists of labels"
