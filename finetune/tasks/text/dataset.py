"""A split of text data as encoded examples: through the cache, without those that are too long, described for people."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from finetune.data.bad_rows import BadRow, BadValue
from finetune.data.prepare.encode import encode
from finetune.data.prepare.notices import KEY as NOTICES
from finetune.data.table import Examples, Row, Table
from finetune.errors import UserError
from finetune.models.tokenizer import fingerprint
from finetune.planning.plan import Plan
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.facts import Facts
from finetune.tasks.records import ASKED
from finetune.tasks.task import Encoded, Task
from finetune.tasks.text.inputs import SHOWN, is_cut_notice
from finetune.tasks.text.lengths import describe_lengths
from finetune.tasks.text.limits import KEY as LIMITED_BY
from finetune.tasks.text.row_values import TOOL_ROLES
from finetune.tasks.text.selection import SplitExamples, drop_marked
from finetune.units import format_number

UNUSED_ROWS = 20  # looked at for columns that are not used
UNUSED_SHOWN = 12  # of their names
EMPTY: tuple[Any, ...] = (None, "", [], {})  # values of a role that say nothing
Cost = Callable[[dict[str, Any]], int]
Reads = Callable[[Row], Collection[str]]
Notice = Callable[[Mapping[str, Any]], str]
Shown = Callable[[Row], Any]
"""The beginning of a row's texts as they are written, for people: tokens do not always say it."""


def num_tokens(example: dict[str, Any]) -> int:
    """The cost of an example that is one sequence."""
    return len(example["input_ids"])


def encode_with_targets(
    task: Task,
    artifacts: TaskArtifacts,
    columns: Mapping[str, str],
    shown: Shown | None,
    notice: Notice | None,
    rows: Sequence[Row],
) -> list[Encoded]:
    """`task.encode`, as a function that can be sent to a worker process. Reasons name columns as the data does.

    columns: role -> column. Rows that are continued as examples of their own (on_long: split) are not reported as cut.
    shown: what is kept of each row beside its tokens. notice: what is to be reported of an example, or "".
    """
    encoded = task.encode(artifacts, rows, with_targets=True)
    for item, row in zip(encoded, rows, strict=True):
        if not isinstance(item, BadRow):
            if shown is not None:
                item[SHOWN] = shown(row)
            else:
                item.pop(SHOWN, None)
            item.pop(ASKED, None)
            if NOTICES in item and getattr(artifacts.options, "on_long", "") == "split":
                item[NOTICES] = [said for said in item[NOTICES] if not is_cut_notice(said)]
            if notice is not None and (said := notice(item)):
                item[NOTICES] = [*item.get(NOTICES, ()), said]
    return [item.with_columns(columns) if isinstance(item, BadValue) else item for item in encoded]


def describe_columns(facts: Facts, table: Table, plan: Plan) -> None:
    """A note on columns that were recognized by their names, which are not those of the roles that they have."""
    data = plan.recipe.data
    mapped = {*data.columns, *(role for source in data.train for role in source.columns)}
    found = [f"{column} as {role}" for role, column in table.columns.items() if role != column and role not in mapped]
    if found:
        facts.notes.append(f"{table.name}: columns read by their names: {', '.join(found)} (change with data.columns)")


def describe_unused(facts: Facts, task: Task, table: Table, reads: Reads | None = None) -> None:
    """A note on columns that are not read, as far as the first rows have them.

    reads: the roles that a row is made of, where that depends on its form: in rows of messages, a column text is not used.
    () for a bad row. None: all roles of the task.
    """
    known = {*task.card.rows.columns, *TOOL_ROLES}
    used: set[str] = set()
    found: dict[str, None] = {}
    for index in range(min(len(table), UNUSED_ROWS)):
        row = table[index]
        roles = known if reads is None else reads(row) or known
        used.update(roles)
        unread = {name: value for name, value in row.items() if name not in roles}
        found.update((name, None) for name, value in unread.items() if name not in known or value not in EMPTY)
    for what, names in (
        ("columns not used", [name for name in found if name not in used]),
        ("columns used in some rows, and not in others", [name for name in found if name in used]),
    ):
        if names:
            columns = [table.columns.get(name, name) for name in names[:UNUSED_SHOWN]]
            listed = ", ".join(columns) + (", ..." if len(names) > UNUSED_SHOWN else "")
            facts.notes.append(f"{table.name}: {what}: {listed}")


def _remedy(report: Sequence[str]) -> str:
    """What to do where no example is left. A larger limit is named only where the limit is the reason."""
    if any("max_length" in line or "limit" in line for line in report):
        return "Use other data, or raise the limit on tokens."
    return "Mend the rows, or map the right columns with data.columns."


def text_dataset(
    task: Task,
    plan: Plan,
    artifacts: TaskArtifacts,
    table: Table,
    facts: Facts,
    *,
    key: Sequence[Any],
    limit: str,
    reads: Reads | None = None,
    shown: Shown | None = None,
    cost: Cost = num_tokens,
    split_at: int = 0,
    notice: Notice | None = None,
) -> Examples:
    """The rows of `table` with their targets, encoded once.

    reads: see describe_unused.
    shown: what examples of other splits than the training's keep of their rows; it is sent to worker processes. None where
    the tokens give back what was written.
    key: everything except the tokenizer that the encoded examples depend on. limit: what an example may have, such as
    "256 tokens", for the reported counts. split_at: longer examples become several of at most that many tokens (0: never).
    notice: see encode_with_targets; it is sent to worker processes, and `key` holds what it depends on.
    Raises: UserError for bad rows where data.on_bad_row is error, and where no example is left.
    """
    shown = shown if table.name != "train" else None
    encoded = encode(
        table,
        partial(encode_with_targets, task, artifacts, dict(table.columns), shown, notice),
        key=json.dumps([fingerprint(artifacts.processor), *key, artifacts.settings.get(LIMITED_BY), shown is not None]),
        on_bad_row=plan.recipe.data.on_bad_row,
        cost=cost,
    )
    if table.name == "train":
        describe_columns(facts, table, plan)
        describe_unused(facts, task, table, reads)
    facts.notes.extend(encoded.report())
    examples, dropped = drop_marked(encoded)
    if not len(examples):
        raise UserError(
            f"{table.name}: no example is left of {format_number(len(table), 'row')}\n" + "\n".join(encoded.report()),
            remedy=_remedy(encoded.report()),
        )
    if split_at:
        examples = SplitExamples(examples, split_at)
    too_long = dropped if getattr(artifacts.options, "on_long", "") == "drop" else 0  # else a notice says why
    cuts = [f"{format_number(rows, 'row')}: {kind}" for kind, rows, _ in encoded.notices.listed if is_cut_notice(kind)]
    describe_lengths(facts, table.name, examples, limit, too_long, cuts)
    return examples
