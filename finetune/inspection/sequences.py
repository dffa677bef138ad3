"""An encoded example as sequences of tokens, with the tokens that are learned: the one place that knows the keys of examples.

The keys are those that the tasks' `collate` reads, so the sequences are what training sees. A task whose examples have other
keys defines `token_sequences(artifacts, example) -> list[TokenSequence]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.models.losses import IGNORE
from finetune.tasks.artifacts import TaskArtifacts


@dataclass(frozen=True)
class TokenSequence:
    """ids: int [tokens]. learned: bool [tokens]; a token that the loss counts.

    name: "chosen", "rejected", "source", "target", or "" for the only one. generated: the model learns to write its learned
    tokens, so a mark must end them. tags: the label of each token, "" where there is none; None for tasks without.
    """

    name: str
    ids: np.ndarray
    learned: np.ndarray
    generated: bool = False
    tags: list[str] | None = None

    @property
    def runs(self) -> list[tuple[int, int]]:
        """[start, end) of each run of learned tokens."""
        edges = np.flatnonzero(np.diff(np.concatenate(([False], self.learned, [False])).astype(np.int8)))
        return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def token_sequences(task: Any, artifacts: TaskArtifacts, example: Mapping[str, Any]) -> list[TokenSequence]:
    """The sequences of one encoded example; [] for examples without tokens, such as images."""
    if hasattr(task, "token_sequences"):
        own: list[TokenSequence] = task.token_sequences(artifacts, example)
        return own
    if "input_ids" not in example:
        return []
    ids = np.asarray(example["input_ids"], np.int64)
    if "rejected_input_ids" in example:
        rejected = np.asarray(example["rejected_input_ids"], np.int64)
        return [
            _in_spans("chosen", ids, example.get("span", ())),
            _in_spans("rejected", rejected, example.get("rejected_span", ())),
        ]
    if "firsts" in example and "labels" in example:
        labels = np.asarray(example["labels"], np.int64)
        names = artifacts.labels
        tags = [names[label] if label != IGNORE else "" for label in labels.tolist()]
        return [TokenSequence("", ids, labels != IGNORE, tags=tags)]
    if "labels" in example:
        target = np.asarray(example["labels"], np.int64)
        source = TokenSequence("source", ids, np.zeros(len(ids), bool))
        return [source, TokenSequence("target", target, target != IGNORE, generated=True)]
    return [_in_spans("", ids, example.get("spans", example.get("span", ())))]


def _in_spans(name: str, ids: np.ndarray, spans: Sequence[int] | np.ndarray) -> TokenSequence:
    """spans: [start, end, start, end, ...]. Nothing stands before the first token to predict it from."""
    learned = np.zeros(len(ids), bool)
    for start, end in np.asarray(spans, np.int64).reshape(-1, 2).tolist():
        learned[max(start, 1) : end] = True
    return TokenSequence(name, ids, learned, generated=len(spans) > 0)


def example_labels(artifacts: TaskArtifacts, example: Mapping[str, Any]) -> list[str] | None:
    """The labels of an example by name; None for tasks without, and for numbers."""
    names = artifacts.labels
    if "desirable" in example:
        return ["desirable" if example["desirable"] else "undesirable"]
    values = example.get("tags", example.get("label"))
    if values is None or not names:
        return None
    indices = np.atleast_1d(np.asarray(values, np.int64)).tolist() if not isinstance(values, int) else [values]
    return [names[index] for index in indices]
