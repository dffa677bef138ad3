"""Answers chunks of prompts with the texts that a generator writes."""

from __future__ import annotations

import queue
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from finetune.inference.answering import Answered, Chunk, Outcome, RowError
from finetune.inference.example_cost import ExampleCost, chunk_budget
from finetune.inference.failure_limit import FailureLimit
from finetune.inference.generation.generator import TextGenerator
from finetune.inference.generation.requests import GenerationSettings, Reply, Request
from finetune.inference.row_problems import judge
from finetune.models.device import free_memory
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.batch import Answer, Score
from finetune.tasks.task import Task
from finetune.tasks.text.reply_limits import expected_reply

_SCORED = 8  # examples of one forward pass for their loss


@dataclass
class _Open:
    """A chunk that is being answered; `left` requests are not done."""

    chunk: Chunk
    requests: list[Request]
    left: int


class GenerationAnswerer:
    """An Answerer for the tasks that write text. The next chunk is taken while sequences of earlier chunks are still
    written, so the generator always has as many as it takes.

    Sampling is named by the "id" of an example, the number of its row.
    """

    def __init__(
        self,
        task: Task,
        artifacts: TaskArtifacts,
        module: nn.Module,
        generator: TextGenerator,
        settings: GenerationSettings,
    ) -> None:
        self._task, self._artifacts, self._module = task, artifacts, module
        self.generator, self.settings = generator, settings
        self.failures = FailureLimit()
        self._scored = _SCORED  # fewer after memory ran out
        self._cost = ExampleCost(written=settings.new_tokens)
        self._done: queue.SimpleQueue[Request] = queue.SimpleQueue()

    def cost(self, example: dict[str, Any]) -> int:
        """Tokens that are read and that may be written."""
        return self._cost(example)

    @property
    def budget(self) -> int:
        """See Answerer."""
        return chunk_budget(self._task, next(self._module.parameters()).device.type)

    def run(self, chunks: Iterable[Chunk | None]) -> Iterator[tuple[Chunk, list[Outcome]]]:
        """See Answerer. Chunks come back when their last reply is written. Raises: TrainingFailed."""
        source = iter(chunks)
        opened: dict[Request, _Open] = {}  # of each request that is not done
        takes, more = True, True
        try:
            while more or opened:
                while more and takes and len(opened) < self._wanted:
                    try:
                        chunk = next(source)
                    except StopIteration:
                        more = False
                        break
                    if chunk is None:  # the next one may be waited for, so what is in work comes first
                        takes = not opened
                    elif chunk.examples:
                        one = self._submit(chunk)
                        opened.update(dict.fromkeys(one.requests, one))
                    else:
                        yield chunk, []
                if not opened:
                    continue
                one = opened.pop(self._done.get())
                takes = takes or not opened
                one.left -= 1
                if not one.left:
                    self.generator.raise_if_broken()
                    yield one.chunk, self._outcomes(one)
        finally:
            for request in opened:
                self.generator.cancel(request)

    @property
    def _wanted(self) -> int:
        """Requests that the generator is to have at least: some wait, so that a free place is filled at once."""
        return self.generator.slots + max(1, self.generator.slots // 4)

    def _submit(self, chunk: Chunk) -> _Open:
        requests = [
            self.generator.submit(prompt_tokens(example), self.settings, row=int(example["id"]), notify=self._done.put)
            for example in chunk.examples
        ]
        return _Open(chunk, requests, left=len(requests))

    def _outcomes(self, opened: _Open) -> list[Outcome]:
        examples = opened.chunk.examples
        scores = self._scores(examples) if has_targets(examples[0]) else {}
        pairs = zip(examples, opened.requests, strict=True)
        return [self._outcome(request.wait(), int(example["id"]), scores) for example, request in pairs]

    def _outcome(self, reply: Reply | RowError, id: int, scores: Mapping[int, Score | RowError]) -> Outcome:
        if isinstance(reply, RowError):
            if reply.kind == "failed":
                self.failures.note_failure(reply.message)
            return reply
        self.failures.answered += 1
        score = scores.get(id)
        if isinstance(score, RowError):
            return RowError(score.kind, f"its expected reply cannot be scored: {score.message}")
        return Answered(Answer(id, self._values(reply)), score)

    def _values(self, reply: Reply) -> dict[str, Any]:
        """As tasks/records.py names them."""
        values: dict[str, Any] = {"text": reply.text.strip(), "finish_reason": reply.finish_reason}
        if self.settings.logprobs:
            decode = self._artifacts.processor.decode
            pairs = zip(reply.tokens, reply.logprobs, strict=True)
            values["logprobs"] = [{"token": decode([token]), "logprob": logprob} for token, logprob in pairs]
        return values

    def _scores(self, examples: Sequence[dict[str, Any]]) -> dict[int, Score | RowError]:
        """The loss of the expected replies, and their texts, by the id of the example."""
        scores: dict[int, Score | RowError] = {}
        start = 0
        while start < len(examples):
            part = examples[start : start + self._scored]
            scores.update(self._scores_of(part))
            start += len(part)
        return scores

    def _scores_of(self, part: Sequence[dict[str, Any]]) -> dict[int, Score | RowError]:
        """Of examples that are computed together; in halves where that fails, down to the one that fails alone."""
        device = next(self._module.parameters()).device
        try:
            return self._compute_scores(part, device)
        except Exception as error:
            problem = judge(error, device)
        if problem.kind == "out_of_memory":
            free_memory(device)
            self._scored = max(1, len(part) // 2)
        if len(part) == 1:
            return {int(part[0]["id"]): problem}
        half = len(part) // 2
        return {**self._scores_of(part[:half]), **self._scores_of(part[half:])}

    def _compute_scores(self, part: Sequence[dict[str, Any]], device: torch.device) -> dict[int, Score | RowError]:
        batch = self._task.collate(self._artifacts, part).to(device)
        with self.generator.exclusively(), torch.no_grad():
            outputs = self._task.forward(self._module, batch)
        scores: dict[int, Score | RowError] = {}
        for example, score in zip(part, self._task.score(self._artifacts, outputs, batch), strict=True):
            text = self._artifacts.processor.decode(expected_tokens(example), skip_special_tokens=True).strip()
            scores[score.id] = replace(score, reference={**score.reference, "reference_text": text})
        return scores


def prompt_tokens(example: dict[str, Any]) -> list[int]:
    """What stands before the last reply of an example; the whole of one that has none (a source, a prompt)."""
    end = example.get("reply_start", example["span"][0] if "span" in example else None)
    return [int(token) for token in example["input_ids"][:end]]


def has_targets(example: dict[str, Any]) -> bool:
    """Whether an expected reply can be scored. A pair of replies (preference tuning) is no expectation."""
    return "spans" in example or "labels" in example


def expected_tokens(example: dict[str, Any]) -> list[int]:
    """The expected reply, in full."""
    tokens = example["labels"] if "labels" in example else expected_reply(example)
    return [int(token) for token in tokens]
