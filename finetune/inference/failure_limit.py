"""Ends a command whose model fails on every row, in place of an output of nothing but errors."""

from __future__ import annotations

from collections.abc import Callable

from finetune.errors import Halted

HOPELESS = 32  # rows that the model may fail on before it has answered any


class FailureLimit:
    """Counts the rows that the model failed on, until it has answered one.

    answered_elsewhere: whether another process has answered a row; asked only before the command is ended.
    """

    def __init__(self) -> None:
        self.answered, self.failed = 0, 0
        self.answered_elsewhere: Callable[[], bool] = lambda: False

    def note_failure(self, message: str) -> None:
        """message: of the row. Raises: Halted, so that nobody starts ranks again only to fail at the same error."""
        self.failed += 1
        if self.failed < HOPELESS or self.answered or self.answered_elsewhere():
            return
        raise Halted(
            f"the model failed on all of the first {self.failed} rows, and so would on every other: {message}",
            remedy="Check that the model fits its task and this version of transformers.",
        )
