"""The usual RowSplitter: one example per row. Images stay as they are stored until a rank is about to answer them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.prepare.notices import KEY as NOTICES
from finetune.data.table import Row
from finetune.inference.answering import Outcome, Part
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.task import Encoded, Task, check_target
from finetune.tasks.text.inputs import encode_each, is_cut_notice

ROW = "row"  # of an example that is encoded late: the row itself
WITH_TARGETS = "with_targets"


@dataclass(frozen=True)
class WholeRows:
    """See RowSplitter. late: rows are encoded by `load`: those of images, whose pixels take a hundred times the space."""

    task: Task
    artifacts: TaskArtifacts

    @property
    def late(self) -> bool:
        return bool(self.task.card.rows.image_role)

    def split(self, rows: Sequence[Row], *, with_targets: bool) -> list[list[dict[str, Any]] | BadRow]:
        """One example for each row, or why there is none."""
        if self.late:
            return encode_each(rows, lambda row: [self._late(row, with_targets)])
        encoded = self.task.encode(self.artifacts, rows, with_targets=with_targets)
        usable = [self._usable(row, item) for row, item in zip(rows, encoded, strict=True)]
        return [item if isinstance(item, BadRow) else [item] for item in usable]

    def _usable(self, row: Row, example: Encoded) -> Encoded:
        """The example, or a BadRow where a split would leave it out, or where what is asked would be cut with its answer."""
        if isinstance(example, BadRow) or "input_ids" not in example:
            return example
        notices = example.get(NOTICES, [])
        if not len(example["input_ids"]):
            return BadRow("; ".join(notices) or "it has more tokens than the model reads", kind="too_long")
        if "spans" in example and any(map(is_cut_notice, notices)):
            (alone,) = self.task.encode(self.artifacts, [row], with_targets=False)
            same = (
                not isinstance(alone, BadRow) and alone["input_ids"] == example["input_ids"][: example["reply_start"]]
            )
            if not same or getattr(self.artifacts.options, "on_long", "") == "split":
                return BadRow("its end has more tokens than the model reads", kind="too_long")
        return example

    def _late(self, row: Row, with_targets: bool) -> dict[str, Any]:
        """Raises: BadRow for a target that cannot be used, so that the row is asked without it."""
        if with_targets:
            check_target(self.task, self.artifacts, row)
        return {ROW: dict(row), WITH_TARGETS: with_targets}

    def load(self, examples: Sequence[dict[str, Any]]) -> list[Encoded]:
        """Images decoded; texts are examples already."""
        if not self.late:
            return list(examples)
        with_targets = bool(examples) and examples[0][WITH_TARGETS]
        encoded = self.task.encode(self.artifacts, [example[ROW] for example in examples], with_targets=with_targets)
        return [
            item if isinstance(item, BadRow) else {**item, "id": example["id"]}
            for item, example in zip(encoded, examples, strict=True)
        ]

    def merge(self, row: int, parts: Sequence[Part]) -> Outcome:
        """No row is split."""
        raise AssertionError(f"row {row} has {len(parts)} parts, but rows are not split")
