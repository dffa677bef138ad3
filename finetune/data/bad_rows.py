"""Rows that cannot be used: collected with their locations, then reported in one error, or skipped and counted."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from typing import Literal

from finetune.errors import UserError

Listed = tuple[str, str]  # (location, reason)
RowKind = Literal["bad_row", "too_long", "empty"]

SHOWN = 20  # bad rows named in one error message
ABSENT_FILES = (
    "None of these files is there. Paths are relative to the file that names them; those of COCO to the folder of its JSON "
    "file, or to `images:` of the source. "
)
MAX_LISTED = 10_000  # bad rows kept in the list; the count has no limit


class BadRow(Exception):
    """A row that cannot be used, and why. Raised by readers and encode functions; callers add the location.

    kind: too_long or empty for a row that is, bad_row for all other reasons: the kind of its error in a prediction.
    """

    def __init__(self, *reason: str, kind: RowKind = "bad_row") -> None:
        super().__init__(*reason)
        self.kind = kind


class BlankLine(BadRow):
    """What a reader yields in place of a blank line where another program may have meant a row: a cell without text, of the
    only column. It is no row, and no bad row: it is counted and reported.
    """

    def __init__(self) -> None:
        super().__init__("a blank line", kind="empty")


class UnusedCategory(BadRow):
    """What a reader yields before the rows for a category that the file lists and has no box of: no row, and no bad row.
    It is counted and reported.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"no box of the category {name}")
        self.name = name

    def __reduce__(self) -> tuple[type[UnusedCategory], tuple[str]]:
        return type(self), (self.name,)


class BadValue(BadRow):
    """A bad row whose reason names columns by their roles: BadValue("{} is a list, not text", "output")."""

    def __init__(self, reason: str, *roles: str, kind: RowKind = "bad_row") -> None:
        super().__init__(reason.format(*roles), kind=kind)
        self.reason, self.roles = reason, roles

    def __reduce__(self) -> tuple[type[BadValue], tuple[str, ...], dict[str, str]]:
        return BadValue, (self.reason, *self.roles), {"kind": self.kind}

    def with_columns(self, columns: Mapping[str, str]) -> BadRow:
        """The same with the names that the columns have in the data. columns: role -> column."""
        return BadRow(self.reason.format(*(columns.get(role, role) for role in self.roles)), kind=self.kind)


def hint_on_absence(reasons: Sequence[str]) -> str:
    """Where files are looked for, if the reasons of several bad rows are all that a file is not there; else ""."""
    absent = len(reasons) > 1 and all(reason.endswith(os.strerror(errno.ENOENT)) for reason in reasons)
    return ABSENT_FILES if absent else ""


class BadRows:
    """The bad rows of one pass over the data.

    policy: with "error", `enforce_policy` raises if there are bad rows; with "skip", they are counted and listed.
    listed: (location, reason) of the first 10,000 bad rows. count: number of all of them.
    """

    def __init__(self, policy: str = "error", listed: Sequence[Listed] = (), count: int | None = None) -> None:
        self.policy = policy
        self.listed: list[Listed] = [(place, reason) for place, reason in listed]
        self.count = len(self.listed) if count is None else count

    def add(self, place: str, reason: str) -> None:
        """Add one bad row, such as ("train.jsonl:17", "no column text")."""
        self.count += 1
        if len(self.listed) < MAX_LISTED:
            self.listed.append((place, reason))

    def extend(self, other: BadRows) -> None:
        """Add the bad rows of another pass."""
        self.count += other.count
        self.listed.extend(other.listed[: MAX_LISTED - len(self.listed)])

    def summary(self) -> str:
        """The first 20 bad rows, one per line, and how many more there are."""
        lines = [f"  {place}: {reason}" for place, reason in self.listed[:SHOWN]]
        if self.count > len(lines):
            lines.append(f"  ... and {self.count - len(lines):,} more")
        return "\n".join(lines)

    def enforce_policy(self, name: str) -> None:
        """End the pass over the split `name` (such as "train").

        Raises: UserError with the count and the first 20 bad rows, if there are any and the policy is "error".
        """
        if self.count and self.policy != "skip":
            rows = "1 row" if self.count == 1 else f"{self.count:,} rows"
            raise UserError(
                f"{name}: {rows} cannot be used\n{self.summary()}",
                remedy=hint_on_absence([reason for _, reason in self.listed])
                + "Fix the data, or skip such rows (they are counted and listed) with data.on_bad_row: skip.",
            )
