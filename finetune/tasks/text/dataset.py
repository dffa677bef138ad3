"""A split of text data as encoded examples: through the cache, without those that are too long, described for people."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from finetune.data.prepare.encode import encode
from finetune.data.table import Examples, Row, Table
from finetune.models.tokenizer import fingerprint
from finetune.planning.plan import Plan
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.facts import Facts
from finetune.tasks.task import Encoded, Task
from finetune.tasks.text.lengths import describe_lengths
from finetune.tasks.text.selection import SplitExamples, drop_marked

Cost = Callable[[dict[str, Any]], int]


def num_tokens(example: dict[str, Any]) -> int:
    """The cost of an example that is one sequence."""
    return len(example["input_ids"])


def encode_with_targets(task: Task, artifacts: TaskArtifacts, rows: Sequence[Row]) -> list[Encoded]:
    """`task.encode`, as a function that can be sent to a worker process."""
    return task.encode(artifacts, rows, with_targets=True)


def text_dataset(
    task: Task,
    plan: Plan,
    artifacts: TaskArtifacts,
    table: Table,
    facts: Facts,
    *,
    key: Sequence[Any],
    limit: int,
    cost: Cost = num_tokens,
    split_at: int = 0,
) -> Examples:
    """The rows of `table` with their targets, encoded once.

    key: everything except the tokenizer that the encoded examples depend on. limit: tokens that an example may have,
    for the reported counts. split_at: longer examples become several of at most that many tokens (0: never).
    """
    encoded = encode(
        table,
        partial(encode_with_targets, task, artifacts),
        key=json.dumps([fingerprint(artifacts.processor), *key]),
        on_bad_row=plan.recipe.data.on_bad_row,
        cost=cost,
    )
    facts.notes.extend(encoded.report())
    examples, dropped = drop_marked(encoded)
    if split_at:
        examples = SplitExamples(examples, split_at)
    describe_lengths(facts, table.name, examples, limit, dropped)
    return examples
