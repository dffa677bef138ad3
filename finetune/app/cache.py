"""`finetune cache`: what prepared data takes on the disk, and its removal."""

from __future__ import annotations

from finetune.data.prepare.cache import cache_folder
from finetune.data.prepare.entries import Entry, list_entries, prune_entries
from finetune.terminal import print_line, print_rows
from finetune.units import format_age, format_bytes

HEAD = ("kind", "from", "size", "last used", "name")
DAY = 86_400


def cache(*, prune: bool, older_than: float | None) -> None:
    """List the entries of the cache; prune: remove those not used for `older_than` days (None: 0, all of them).

    What a running training uses is never removed.
    """
    if not prune:
        entries = [entry for entry in list_entries() if entry.unused_seconds >= (older_than or 0) * DAY]
        print_rows(HEAD, [_row(entry) for entry in entries], empty=f"{cache_folder()} holds no prepared data")
        if entries:
            print_line(f"{_total(entries)} in {cache_folder()}; finetune cache --prune removes them")
        return
    removed, in_use = prune_entries(older_than or 0)
    print_line(f"removed {_total(removed)} from {cache_folder()}")
    if in_use:
        print_line(f"kept {_total(in_use)}: a running process uses them")


def _total(entries: list[Entry]) -> str:
    size = format_bytes(sum(entry.size_bytes for entry in entries))
    return f"{len(entries):,} {'entry' if len(entries) == 1 else 'entries'} ({size})"


def _row(entry: Entry) -> tuple[str, ...]:
    kind = f"{entry.kind} (interrupted)" if entry.partial else entry.kind
    return kind, entry.about, format_bytes(entry.size_bytes), format_age(entry.unused_seconds), entry.path.name[:12]
