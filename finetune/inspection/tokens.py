"""One pass over the encoded examples of a split: lengths, learned tokens, ends of turns, unknown tokens, labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from finetune.data.table import Examples
from finetune.inspection.sequences import TokenSequence, example_labels, token_sequences
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.causal_lm.model import stop_tokens

TICK = 2048  # examples between two progress reports


@dataclass
class TokenStatistics:
    """lengths, learned: tokens of each example over all its sequences, int [examples]. supervises: the task learns tokens.

    unlearned: positions of examples of a supervising task without a learned token. unended: positions whose learned tokens
    hold no end-of-turn token. doubled: positions that begin with two BOS tokens. at_limit: positions with a sequence as long
    as its limit. unknown: tokens of the text that the tokenizer does not know, int [examples].
    labels: names of each example's labels; None for tasks without. numbers: regression's labels.
    """

    lengths: np.ndarray
    learned: np.ndarray
    unknown: np.ndarray
    supervises: bool = False
    unlearned: list[int] = field(default_factory=list)
    unended: list[int] = field(default_factory=list)
    doubled: list[int] = field(default_factory=list)
    at_limit: list[int] = field(default_factory=list)
    labels: list[list[str]] | None = None
    numbers: np.ndarray | None = None


class _Reader:
    """What one example adds to the statistics."""

    def __init__(self, task: Any, artifacts: TaskArtifacts) -> None:
        tokenizer = artifacts.processor
        self.task, self.artifacts = task, artifacts
        self.stops = np.array(ending_tokens(tokenizer), np.int64)
        self.limits = set(length_limits(artifacts).values())
        self.bos, self.unknown = tokenizer.bos_token_id, tokenizer.unk_token_id
        if self.unknown in (tokenizer.eos_token_id, tokenizer.pad_token_id):
            self.unknown = None

    def ends(self, sequence: TokenSequence) -> bool:
        """Whether every run of learned tokens holds a token that ends a turn; a run that was cut need not."""
        if not sequence.generated or not len(self.stops) or len(sequence.ids) in self.limits:
            return True
        for start, end in sequence.runs:
            if int(sequence.ids[end - 1]) not in self.stops and not np.isin(sequence.ids[start:end], self.stops).any():
                return False
        return True


def ending_tokens(tokenizer: Any) -> list[int]:
    """Tokens that end what a model writes: end of text, and the chat template's end of turn."""
    if tokenizer.chat_template:
        return stop_tokens(tokenizer)
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def length_limits(artifacts: TaskArtifacts) -> dict[str, int]:
    """The limits on tokens that the artifacts hold: {"max_length": 512}, or of source and target."""
    found = {key: int(value) for key, value in artifacts.settings.items() if key.startswith("max_") and "length" in key}
    target = getattr(artifacts.options, "max_target_length", None)
    return {**found, **({"max_target_length": int(target)} if target else {})}


def read_tokens(
    task: Any, artifacts: TaskArtifacts, examples: Examples, tick: Callable[[int], None]
) -> TokenStatistics:
    """Reads every example once."""
    count, reader = len(examples), _Reader(task, artifacts)
    lengths, learned, unknown = (np.zeros(count, np.int64) for _ in range(3))
    statistics = TokenStatistics(lengths, learned, unknown)
    labels: list[list[str]] = []
    numbers: list[float] = []
    for position in range(count):
        example = examples[position]
        sequences = token_sequences(task, artifacts, example)
        lengths[position] = sum(len(one.ids) for one in sequences)
        learned[position] = sum(int(one.learned.sum()) for one in sequences)
        supervised = [one for one in sequences if one.generated or one.tags is not None]
        if supervised:
            statistics.supervises = True
            if not all(one.learned.any() for one in supervised):
                statistics.unlearned.append(position)
            elif not all(map(reader.ends, supervised)):
                statistics.unended.append(position)
        if any(len(one.ids) in reader.limits for one in sequences):
            statistics.at_limit.append(position)
        if reader.bos is not None and any(len(one.ids) > 1 and (one.ids[:2] == reader.bos).all() for one in sequences):
            statistics.doubled.append(position)
        if reader.unknown is not None:
            unknown[position] = sum(int((one.ids == reader.unknown).sum()) for one in sequences)
        names = example_labels(artifacts, example)
        if names is not None:
            labels.append(names)
        elif "label" in example:
            numbers.append(float(example["label"]))
        if position % TICK == TICK - 1:
            tick(position + 1)
    statistics.labels = labels if len(labels) == count else None
    statistics.numbers = np.array(numbers) if numbers and len(numbers) == count else None
    return statistics
