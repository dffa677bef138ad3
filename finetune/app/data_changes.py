"""Is the data of a run still the data that it was trained on? Compared by content, before anything is encoded. No torch here.

A run keeps in run.json, for each split, the number of its rows, a digest of their content, and its files. Data that was
moved or touched is the same. Data with other content is refused: a training may continue with it on request
(--data-changed), an evaluation of a split never reads other rows than those of the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from finetune.data.table import Table
from finetune.errors import UserError
from finetune.recipe.identity import stored_values, training_differences
from finetune.recipe.recipe import Recipe
from finetune.tracking.run import Run
from finetune.units import format_number

Record = Mapping[str, Any]  # of a split: {"rows": 48, "content": digest, "files": [{"name", "rows", "content"}]}
LISTED_FILES = 100  # kept by name; of more, their number
SHOWN = 5  # changed files that are named


def describe_data(tables: Iterable[Table]) -> dict[str, dict[str, Any]]:
    """The record of each split, JSON values. Reads the images that rows name, unless they are known."""
    found: dict[str, dict[str, Any]] = {}
    for table in tables:
        files = table.files() if hasattr(table, "files") else []
        content = getattr(table, "content", "")
        found[table.name] = {"rows": len(table), "content": content, "files": files[:LISTED_FILES]}
        if len(files) > LISTED_FILES:
            found[table.name]["more_files"] = len(files) - LISTED_FILES
    return found


def data_changes(before: Mapping[str, Record], now: Mapping[str, Record]) -> list[str]:
    """What is not as it was, a line for each split: "train: train.csv had 48 rows, and now has 50". Of runs of earlier
    versions, only the numbers of rows are known.
    """
    changes = []
    for split in [*before, *(split for split in now if split not in before)] if before else ():
        then, current = before.get(split), now.get(split)
        if then is None or current is None:
            rows = [format_number(each["rows"], "row") if each else "none" for each in (then, current)]
            changes.append(f"{split}: had {rows[0]}, and now has {rows[1]}")
        elif then["rows"] != current["rows"] or then.get("content", current["content"]) != current["content"]:
            changes.append(f"{split}: {'; '.join(_file_changes(then, current))}")
    return changes


def _file_changes(then: Record, now: Record) -> list[str]:
    """Of two records that differ."""
    rows = f"{format_number(then['rows'], 'row')}, and now {now['rows']:,}"
    old, new = ({file["name"]: file for file in record.get("files", ())} for record in (then, now))
    changed = [_file_change(name, old[name], new[name]) for name in old if name in new and old[name] != new[name]]
    gone, added = [name for name in old if name not in new], [name for name in new if name not in old]
    if gone and added and not changed and [old[name]["content"] for name in gone] == [new[n]["content"] for n in added]:
        gone = added = []  # renamed
    lines = [*changed[:SHOWN], *([f"and {len(changed) - SHOWN} more files"] if len(changed) > SHOWN else [])]
    for names, verb in ((gone, "gone"), (added, "new")):
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            lines.append(f"{', '.join(names[:SHOWN])}{more} {'is' if len(names) == 1 else 'are'} {verb}")
    if not lines:
        return [f"other content than before ({rows})" if then["rows"] == now["rows"] else rows]
    return lines if then["rows"] == now["rows"] else [f"{rows}", *lines]


def _file_change(name: str, then: Record, now: Record) -> str:
    if then["rows"] == now["rows"]:
        return f"{name} has other content, or the images that it names have ({format_number(now['rows'], 'row')} as before)"
    return f"{name} had {format_number(then['rows'], 'row')}, and now has {now['rows']:,}"


def check_resumed_data(run: Run, now: Mapping[str, Record], *, continued: bool) -> None:
    """Before a training of `run` continues. continued: with whatever data there is. Raises: UserError for other data."""
    changes = [] if continued else data_changes(_recorded(run), now)
    if changes:
        raise UserError(
            f"the data is not what the run was trained on:{_listed(changes)}",
            where=str(run.path),
            remedy="Bring it back; or continue with the data as it is now: --data-changed; or train anew in a new run "
            "folder: --resume never.",
        )


def check_evaluated_rows(run: Run, recipe: Recipe, split: str, now: Mapping[str, Record]) -> None:
    """Before a split of `run` is evaluated. recipe: as --set may have changed it; then other data is meant.

    Raises: UserError where the rows are not those of the run.
    """
    before = _recorded(run).get(split)
    if before is None or any(line.startswith("data.") for line in _differences(run, recipe)):
        return
    (record,) = now.values()
    if changes := data_changes({split: before}, {split: record}):
        raise UserError(
            f"the rows of {split} are not those that the run had:{_listed(changes)}",
            where=str(run.path),
            remedy="Bring the data back; or evaluate the rows of a file as they are now: --data FILE.",
        )


def _recorded(run: Run) -> dict[str, Record]:
    return run.read().get("data") or {} if run.file.is_file() else {}


def _differences(run: Run, recipe: Recipe) -> Sequence[str]:
    return training_differences(stored_values(run.recipe_file), recipe) if run.recipe_file.is_file() else ()


def _listed(changes: Sequence[str]) -> str:
    return "".join(f"\n    {change}" for change in changes)
