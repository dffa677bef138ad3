"""Answers chunks of examples by one forward pass each, with a bare model in this process: classes, tags, numbers, boxes.

    chunk -> Task.collate -> Task.forward -> Task.decode, and Task.score where the examples have targets -> outcomes

On a GPU the next chunk is taken and collated while the device works on this one. A chunk that fails is halved until the row
that fails is alone. A chunk that does not fit into memory is computed in pieces, and so are later ones of its size: what
chunks there are, and the rows of each, stay as they were.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from finetune.distributed.failure import PeerFailed, tells_of_peer
from finetune.distributed.prefetcher import Prefetcher
from finetune.errors import TrainingFailed
from finetune.inference.answering import Answered, Chunk, Outcome, RowError
from finetune.inference.example_cost import ExampleCost, chunk_budget
from finetune.inference.failure_limit import FailureLimit
from finetune.inference.row_problems import judge
from finetune.models.device import free_memory
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.batch import Answer, Batch
from finetune.tasks.task import Task, as_writing_task, merge_texts, reference_columns

Example = dict[str, Any]


class BatchAnswerer:
    """An Answerer. It needs neither other ranks nor an optimizer.

    out_of_memory: how often a batch did not fit. piece_cost: the cost of a batch that memory allows; None: of any chunk.
    failures: see FailureLimit.
    """

    def __init__(
        self,
        task: Task,
        artifacts: TaskArtifacts,
        module: nn.Module,
        device: torch.device,
        *,
        autocast: torch.dtype | None = None,
        asked_budget: int | None = None,
        together: bool = False,
    ) -> None:
        """module: in evaluation mode, on `device`. autocast: see AskedModel. asked_budget: tokens or pixels of a chunk;
        None: by the kind of device. together: other ranks hold slices or stages of the model, and are given the same chunks:
        what fails in its forward pass ends the command, as the others may be waiting inside theirs.
        """
        self.task, self.artifacts, self.module, self.device = task, artifacts, module, device
        self.cost = ExampleCost.of(task, artifacts)
        self.out_of_memory = 0
        self.piece_cost: int | None = None
        self._autocast, self._asked_budget, self._together = autocast, asked_budget, together
        self._writes, self._compares = hasattr(task, "generate"), bool(reference_columns(task, artifacts))
        self.failures = FailureLimit()

    @property
    def budget(self) -> int:
        """The cost of a chunk: as asked, or by the kind of device."""
        return chunk_budget(self.task, self.device.type) if self._asked_budget is None else self._asked_budget

    def run(self, chunks: Iterable[Chunk | None]) -> Iterator[tuple[Chunk, list[Outcome]]]:
        """The outcomes of each chunk, in the order of the chunks. See Answerer."""
        prefetcher = Prefetcher(self._collated(chunks), self.device)
        ahead = prefetcher.fetch if self.device.type != "cpu" else _nothing
        while True:
            try:
                taken = prefetcher.take()
            except StopIteration:
                return
            if taken is not None:
                chunk, batch = taken
                yield chunk, self._outcomes(chunk.examples, batch, ahead)

    def _collated(self, chunks: Iterable[Chunk | None]) -> Iterator[tuple[Chunk, Batch | None] | None]:
        """Each chunk with its batch; without one where it will be computed in pieces, or cannot be collated as a whole."""
        for chunk in chunks:
            if chunk is None or not chunk.examples:
                yield None if chunk is None else (chunk, None)
                continue
            batch = None
            if len(self._pieces(chunk.examples)) == 1:
                try:
                    batch = self._collate(chunk.examples)
                except Exception:  # found again, and named, when the chunk is halved
                    batch = None
            yield chunk, batch

    def _collate(self, examples: Sequence[Example]) -> Batch:
        batch = self.task.collate(self.artifacts, examples)
        return batch.pin_memory() if self.device.type == "cuda" else batch

    def _outcomes(self, examples: Sequence[Example], batch: Batch | None, ahead: Callable[[], None]) -> list[Outcome]:
        """One per example. batch: of all of them, if they are collated already."""
        pieces = self._pieces(examples)
        if len(pieces) > 1:
            return [outcome for piece in pieces for outcome in self._outcomes(piece, None, _nothing)]
        if not examples:
            return []
        collated = batch
        try:
            collated = batch or self._collate(examples)
            outcomes = self._answer(collated, ahead)
            self.failures.answered += len(outcomes)
            return outcomes
        except Exception as error:
            problem = judge(error, self.device)
            if self._together and tells_of_peer(error):
                raise PeerFailed("a rank that holds the model together with this one is gone") from error
            if self._together and collated is not None:
                raise TrainingFailed(
                    f"one of the ranks that hold the model together failed: {problem.message}"
                ) from error
        return self._retry(examples, problem)  # outside, where the frames that hold the tensors are gone

    def _retry(self, examples: Sequence[Example], problem: RowError) -> list[Outcome]:
        """The outcomes of examples that failed together: in halves, or the problem of one alone."""
        if problem.kind == "out_of_memory":
            self.out_of_memory += 1
            free_memory(self.device)
            if len(examples) > 1:
                self.piece_cost = max(1, sum(map(self.cost, examples)) // 2)
        if len(examples) > 1:
            half = len(examples) // 2
            return [*self._outcomes(examples[:half], None, _nothing), *self._outcomes(examples[half:], None, _nothing)]
        if problem.kind == "failed":
            self.failures.note_failure(problem.message)
        return [problem]

    def _pieces(self, examples: Sequence[Example]) -> list[Sequence[Example]]:
        """Runs of examples within `piece_cost`, or one example alone."""
        if self.piece_cost is None:
            return [examples]
        pieces: list[list[Example]] = []
        total = 0
        for example in examples:
            cost = self.cost(example)
            if not pieces or total + cost > self.piece_cost:
                pieces.append([])
                total = 0
            pieces[-1].append(example)
            total += cost
        return list(pieces) or [examples]

    def _answer(self, batch: Batch, ahead: Callable[[], None]) -> list[Outcome]:
        """ahead: called when the device has its work."""
        with torch.inference_mode(), self._computing():
            moved = batch.to(self.device)
            scored = bool(moved.targets) and not self._compares
            writes = self._writes and "target_rows" not in moved.targets  # of pairs, which are compared
            outputs = None if self._writes and not scored else self.task.forward(self.module, moved)
            ahead()
            answers = self.task.decode(self.artifacts, outputs, moved)
            if writes:
                written = as_writing_task(self.task).generate(self.artifacts, self.module, moved, synced=False)
                answers = merge_texts(answers, written)
            scores = self.task.score(self.artifacts, outputs, moved) if scored else [None] * len(answers)
        return [
            Answered(answer, score) if _is_finite(answer) else RowError("failed", "the model's output is not finite")
            for answer, score in zip(answers, scores, strict=True)
        ]

    def _computing(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, dtype=self._autocast) if self._autocast else nullcontext()


def _nothing() -> None:
    """In place of fetching ahead."""


def _is_finite(answer: Answer) -> bool:
    return all(_finite(value) for value in answer.values.values())


def _finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    return all(map(_finite, value)) if isinstance(value, (list, tuple)) else True
