"""Rows that cannot be used: collected with their places, then told all at once, or skipped, counted and listed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from finetune.errors import UserError

Policy = Literal["error", "skip"]
Listed = tuple[str, str]  # (place, why)

SHOWN = 20  # bad rows named in one error
LISTED = 10_000  # bad rows remembered; the count goes on


class BadRow(Exception):
    """A row that cannot be used, and why. Whoever calls knows the place. Raised by readers and encode functions."""


class BadRows:
    """The bad rows of one pass over the data.

    policy "error": `settle` raises; "skip": it returns, and `count` and `listed` say what was left out.
    """

    def __init__(self, policy: str = "error", listed: Sequence[Listed] = (), count: int | None = None) -> None:
        self.policy = policy
        self.listed: list[Listed] = [(place, why) for place, why in listed]
        self.count = len(self.listed) if count is None else count

    def add(self, place: str, why: str) -> None:
        """One more, such as ("train.jsonl:17", "no column text")."""
        self.count += 1
        if len(self.listed) < LISTED:
            self.listed.append((place, why))

    def extend(self, other: BadRows) -> None:
        """All those of another pass."""
        self.count += other.count
        self.listed.extend(other.listed[: LISTED - len(self.listed)])

    def told(self) -> str:
        """The first few, one a line, and how many more there are."""
        lines = [f"  {place}: {why}" for place, why in self.listed[:SHOWN]]
        if self.count > len(lines):
            lines.append(f"  ... and {self.count - len(lines):,} more")
        return "\n".join(lines)

    def settle(self, what: str) -> None:
        """End of the pass over `what` (such as "train").

        Raises: UserError with the count and the first 20 places, if there are bad rows and the policy is "error".
        """
        if self.count and self.policy != "skip":
            rows = "1 row" if self.count == 1 else f"{self.count:,} rows"
            raise UserError(
                f"{what}: {rows} cannot be used\n{self.told()}",
                remedy="Mend the data, or leave such rows out (they are counted and listed): data.on_bad_row: skip",
            )
