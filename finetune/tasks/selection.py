"""Examples of a split without some of them: those that options.on_long: drop leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from finetune.data.table import Examples

if TYPE_CHECKING:
    import numpy as np

DROPPED = 0  # the cost that marks an example to leave out; every real example costs at least 1


class SelectedExamples:
    """`examples` at the positions `kept`, in order; ids and costs follow."""

    def __init__(self, examples: Examples, kept: Sequence[int] | np.ndarray) -> None:
        import numpy as np

        self.examples = examples
        self.kept = np.asarray(kept, np.int64)
        self.ids: np.ndarray = np.asarray(examples.ids)[self.kept]
        self.costs: np.ndarray = np.asarray(examples.costs)[self.kept]
        self.skipped_count: int = getattr(examples, "skipped_count", 0)

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.examples[int(self.kept[index])]


def drop_marked(examples: Examples) -> tuple[Examples, int]:
    """The examples whose cost is not 0, and how many were left out."""
    import numpy as np

    kept = np.flatnonzero(np.asarray(examples.costs) != DROPPED)
    left_out = len(examples) - len(kept)
    if not left_out:
        return examples, 0
    return SelectedExamples(examples, kept), left_out
