"""An Answerer of examples that are loaded shortly before they are answered: what waits takes the memory of the rows alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.inference.answering import Answerer, Chunk, Outcome, RowSplitter
from finetune.inference.failure_limit import FailureLimit
from finetune.inference.prediction.feeder import error_of, load_examples


class LoadingAnswerer:
    """Loads the examples of a chunk when the answerer takes it. One that cannot be loaded has that as its outcome."""

    def __init__(self, answerer: Answerer, splitter: RowSplitter) -> None:
        self._answerer, self._splitter = answerer, splitter
        self.cost = answerer.cost
        self._taken: dict[tuple[int, int], tuple[Chunk, dict[int, Outcome]]] = {}

    @property
    def budget(self) -> int:
        return self._answerer.budget

    @property
    def failures(self) -> FailureLimit:
        return self._answerer.failures

    def run(self, chunks: Iterable[Chunk | None]) -> Iterator[tuple[Chunk, list[Outcome]]]:
        """See Answerer. The chunks that are given back are those that were given."""
        self._taken.clear()
        for loaded, outcomes in self._answerer.run(self._loaded(chunks)):
            chunk, known = self._taken.pop(loaded.name)
            rest = iter(outcomes)
            yield chunk, [known[i] if i in known else next(rest) for i in range(len(chunk.examples))]

    def _loaded(self, chunks: Iterable[Chunk | None]) -> Iterator[Chunk | None]:
        for chunk in chunks:
            if chunk is None:
                yield None
                continue
            examples: list[dict[str, Any]] = []
            known: dict[int, Outcome] = {}
            for index, item in enumerate(load_examples(self._splitter, chunk.examples)):
                if isinstance(item, BadRow):
                    known[index] = error_of(item)
                else:
                    examples.append(item)
            self._taken[chunk.name] = (chunk, known)
            yield Chunk(chunk.name, examples)
