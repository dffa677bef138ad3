"""Backend: who answers the rows and writes the texts of requests, in this process or in others. No torch here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

from finetune.inference.serving.messages import ModelFacts, Piece, Record, Sampling


class Backend(Protocol):
    """All methods are called on the event loop's thread."""

    @property
    def facts(self) -> ModelFacts:
        """Of the model. Raises: RequestFault (503) while none is loaded."""
        ...

    @property
    def replicas(self) -> tuple[int, int]:
        """(those that are ready, all of them)."""
        ...

    async def predict(self, rows: list[dict[str, Any]], *, top_k: int, threshold: float | None) -> list[Record]:
        """A record for each row, in order, "row" counted from 0. A row that fails has an "error" and is alone in that.

        Cancelling the call takes its rows out of the queue. Raises: RequestFault if no replica can answer.
        """
        ...

    def write(self, sampling: Sampling) -> AsyncIterator[Piece]:
        """The reply, piece by piece; the last one has finish_reason or error. Closing the iterator cancels the request."""
        ...

    async def close(self) -> None:
        """End the replicas."""
        ...
