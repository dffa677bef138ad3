r"""Values of a row: what counts as no value (null, NaN, infinity), and text that cannot be encoded.

{"text": NaN}             no value: the row is bad where text is needed, and an empty input where it is not
{"text": "x \ud83d"}      half of an emoji, cut by something that counts UTF-16 units: a bad row
csv: a cell NA, nan, null text, because csv has no null; counted, so that nobody trains on the word unawares
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.recipe.roles import TEXTS

# What pandas reads as a missing value (pandas.read_csv, na_values), without the empty cell.
MISSING_WORDS = frozenset(
    (
        *("#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"),
        *("<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
    )
)
LONGEST_WORD = max(map(len, MISSING_WORDS))
NO_NUMBER, NO_TIME, WORD, NUMBER = "no number", "no time", "word", "number"  # kinds of odd values
BLANK_LINE = "blank line"  # of no column
UNUSED = "unused category"  # its name stands for the column
NAMED = 8  # unused categories that a line names


def is_missing(value: Any) -> bool:
    """Whether a value is none: null, NaN, infinity."""
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def to_number(value: Any) -> float:
    """float(value), but nothing of what Python alone takes for a number. Raises: ValueError for true and false, and for a
    text with underscores (1_000); TypeError and OverflowError as float does.
    """
    if isinstance(value, bool) or (isinstance(value, str) and "_" in value):
        raise ValueError(f"{value!r} is not a number")
    return float(value)


def without_nan(value: Any) -> Any:
    """The value with None in place of every NaN and infinity inside of lists and mappings."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: without_nan(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return value


def lone_surrogate(value: Any) -> str | None:
    """The first half of a surrogate pair in a text, or in the texts inside of lists and mappings; None if there is none."""
    if isinstance(value, str):
        if value.isascii():
            return None
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            return value[error.start]
        return None
    if isinstance(value, Mapping):
        value = (part for item in value.items() for part in item)
    elif not isinstance(value, (list, tuple)):
        return None
    return next((found for item in value if (found := lone_surrogate(item)) is not None), None)


def check_text(value: Any, name: str) -> None:
    """Raises: BadRow if a text in `value`, also inside of lists and mappings, cannot be encoded. name: its column."""
    found = lone_surrogate(value)
    if found is not None:
        raise BadRow(
            f"{name} contains half of a surrogate pair (\\u{ord(found):04x}), which is not a character: the text was cut in "
            "the middle of one"
        )


def is_number_in_text(value: Any, role: str) -> bool:
    """Whether a role of texts has a number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and role in TEXTS


def number_notices(row: Mapping[str, Any], mapping: Mapping[str, str]) -> list[str]:
    """A notice for each role of texts that has a number in this row. row: by roles. mapping: role -> column."""
    return [
        f"{column} is a number, read as text"
        for role, column in mapping.items()
        if is_number_in_text(row.get(role), role)
    ]


class OddValues:
    """Counts of values that are read otherwise than a reader may expect, by kind and column, each with the first place."""

    def __init__(self, counts: Iterable[tuple[str, str, int, str]] = ()) -> None:
        self._counts = {(kind, column): (count, first) for kind, column, count, first in counts}

    def add(self, kind: str, column: str, place: str, count: int = 1) -> None:
        """Count a value. place: of the first one."""
        before, first = self._counts.get((kind, column), (0, place))
        self._counts[kind, column] = before + count, first

    def look(self, row: Mapping[str, Any], mapping: Mapping[str, str], place: str, *, words: bool) -> None:
        """Count the odd values in the columns of roles. mapping: role -> column. words: also cells that hold just a word
        such as NA.
        """
        for role, column in mapping.items():
            value = row.get(column)
            if isinstance(value, float) and not math.isfinite(value):
                self.add(NO_NUMBER, column, place)
            elif is_number_in_text(value, role):
                self.add(NUMBER, column, place)
            elif words and isinstance(value, str) and len(value) <= LONGEST_WORD and value.strip() in MISSING_WORDS:
                self.add(WORD, column, place)

    def extend(self, other: OddValues) -> None:
        """Add the counts of another part."""
        for kind, column, count, first in other.to_list():
            self.add(kind, column, first, count)

    def to_list(self) -> list[tuple[str, str, int, str]]:
        """[(kind, column, count, first place)], as the constructor takes them."""
        return [(kind, column, count, first) for (kind, column), (count, first) in self._counts.items()]

    def notes(self) -> list[str]:
        """One line for each kind and column."""
        lines: list[str] = []
        unused: list[tuple[str, str]] = []
        for kind, column, count, first in self.to_list():
            if kind == BLANK_LINE:
                blank = "1 blank line is no row" if count == 1 else f"{count:,} blank lines are no rows"
                lines.append(f"{blank} (first: {first})")
                continue
            if kind == UNUSED:
                unused.append((column, first))
                continue
            values = "1 value is" if count == 1 else f"{count:,} values are"
            if kind == NO_TIME:
                lines.append(f"{column}: {values} beyond the times that Python has, read as missing (first: {first})")
            elif kind == NO_NUMBER:
                lines.append(f"{column}: {values} NaN or infinite, read as missing (first: {first})")
            elif kind == NUMBER:
                numbers = "1 value is a number" if count == 1 else f"{count:,} values are numbers"
                lines.append(f"{column}: {numbers}, read as text (first: {first})")
            else:
                lines.append(
                    f"{column}: {values} just a word such as nan, null, None or NA, read as text (first: {first})"
                )
        return [*lines, *_describe_unused(unused)]


def _describe_unused(unused: Sequence[tuple[str, str]]) -> list[str]:
    """A line on categories that a file lists and has no box of. unused: (name, the first such file)."""
    if not unused:
        return []
    names = ", ".join(name for name, _ in unused[:NAMED])
    more = f" and {len(unused) - NAMED:,} more" if len(unused) > NAMED else ""
    return [
        f"categories that a file lists without a box of them: {names}{more} (first: {unused[0][1]}); they are classes only "
        "if other training data has boxes of them"
    ]
