"""What encoding left out or changed in rows that are used all the same: counted by kind, with the first places."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

KEY = "notices"  # of an encoded example, on its way from the task to the cache: a list of sentences, one per kind
SHOWN = 3  # places named for each kind
MAX_KINDS = 50  # kinds listed; the rest are counted together
_OTHER = "further notices of other kinds"


class Notices:
    """Counts notices over the rows of a split.

    >>> notices = Notices()
    >>> notices.add("train.jsonl:3", ["the tools are not used"])
    >>> notices.add("train.jsonl:8", ["the tools are not used"])
    >>> notices.lines()
    ['2 rows: the tools are not used (train.jsonl:3, train.jsonl:8)']
    """

    def __init__(self, listed: Iterable[Sequence[object]] = ()) -> None:
        self._kinds: dict[str, tuple[int, list[str]]] = {
            str(kind): (int(str(count)), [str(place) for place in places])  # type: ignore[attr-defined]
            for kind, count, places in listed
        }

    def add(self, place: str, kinds: Iterable[str]) -> None:
        """Count what is to be reported of one row, such as ("train.jsonl:17", ["its thoughts are left out"])."""
        for kind in dict.fromkeys(kinds):
            self._count(kind, 1, [place])

    def extend(self, other: Notices) -> None:
        """Add the notices of rows that follow."""
        for kind, (count, places) in other._kinds.items():
            self._count(kind, count, places)

    def _count(self, kind: str, count: int, places: Sequence[str]) -> None:
        if kind not in self._kinds and len(self._kinds) >= MAX_KINDS:
            kind = _OTHER
        before, shown = self._kinds.get(kind, (0, []))
        self._kinds[kind] = before + count, [*shown, *places][:SHOWN]

    @property
    def listed(self) -> list[tuple[str, int, list[str]]]:
        """(kind, rows, first places), as JSON values; the argument of a new Notices."""
        return [(kind, count, places) for kind, (count, places) in self._kinds.items()]

    def lines(self) -> list[str]:
        """A line per kind, the most frequent first."""
        ordered = sorted(self.listed, key=lambda item: -item[1])
        return [
            f"{count:,} {'row' if count == 1 else 'rows'}: {kind} "
            f"({', '.join(places)}{', ...' if count > len(places) else ''})"
            for kind, count, places in ordered
        ]
