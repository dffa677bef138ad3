"""Training texts beside the prompts that inference gives the model: the prompt should be the beginning of the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.data.bad_rows import BadRow
from finetune.inspection.left_out import without_limits
from finetune.inspection.sequences import token_sequences
from finetune.inspection.split import InspectedSplit
from finetune.tasks.artifacts import TaskArtifacts

COMPARED = 64  # rows, drawn at random


@dataclass(frozen=True)
class PromptComparison:
    """trained: tokens of the training text up to the first token after the prompt; prompt: what inference gives the model.

    same: the text begins with the prompt. at: the first token where they differ.
    """

    row: int
    trained: list[int]
    prompt: list[int]
    same: bool
    at: int


def compare_prompts(task: Any, artifacts: TaskArtifacts, split: InspectedSplit, seed: int) -> list[PromptComparison]:
    """For up to 64 random rows of a split whose model writes texts; [] for other tasks."""
    if split.tokens is None or not len(split.row_ids):
        return []
    if not any(one.generated for one in token_sequences(task, artifacts, split.examples[0])):
        return []
    rows = np.unique(split.row_ids)
    chosen = np.sort(np.random.default_rng(seed).permutation(rows)[:COMPARED]).tolist()
    values = [split.table[row] for row in chosen]
    endless = without_limits(artifacts)
    texts = task.encode(endless, values, with_targets=True)
    prompts = task.encode(endless, values, with_targets=False)
    compared = []
    for row, text, prompt in zip(chosen, texts, prompts, strict=True):
        if isinstance(text, BadRow) or isinstance(prompt, BadRow):
            continue
        trained = token_sequences(task, artifacts, text)[0].ids
        given = np.asarray(prompt["input_ids"], np.int64)
        shared = min(len(trained), len(given))
        differing = np.flatnonzero(trained[:shared] != given[:shared])
        at = int(differing[0]) if len(differing) else shared
        if at == len(trained) < len(given):  # the row ends with a question, whose turns are not in the training text
            continue
        same = at == len(given)
        compared.append(PromptComparison(row, trained[: max(len(given), at) + 1].tolist(), given.tolist(), same, at))
    return compared
