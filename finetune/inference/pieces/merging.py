"""Makes one outcome of those of a row's pieces: what all kinds of pieces share, and the merging of scores and numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from finetune.inference.answering import Answered, Outcome, Part, RowError
from finetune.tasks.batch import Answer, Score

Answers = Sequence[tuple[Mapping[str, Any], Answer]]
"""(piece, its answer), in the order of the pieces."""


def merge_outcomes(parts: Sequence[Part], merge: Callable[[Answers], Answer], *, joined: bool = False) -> Outcome:
    """The merged answer, by `merge` from all answers in the order of the pieces; or the error of the first that failed.

    Loss and weight are summed over the pieces: it is the loss of what the model saw, places in several pieces counted as
    often. joined: the lists of the reference are those of all pieces, one after the other; else it is the first piece's, as
    each piece has that of the whole row.
    """
    parts = sorted(parts, key=lambda part: part.piece["index"])
    indices, count = [part.piece["index"] for part in parts], parts[0].piece["count"]
    assert indices == list(range(count)), f"pieces {indices} of {count}"
    failed = [(part.piece, part.outcome) for part in parts if isinstance(part.outcome, RowError)]
    if failed:
        piece, error = failed[0]
        more = f" ({len(failed)} of {count} pieces failed)" if len(failed) > 1 else ""
        return RowError(error.kind, f"{piece['name']}: {error.message}{more}" if count > 1 else error.message)
    answered = [(part.piece, part.outcome) for part in parts if isinstance(part.outcome, Answered)]
    answer = merge([(piece, outcome.answer) for piece, outcome in answered])
    return Answered(answer, _merge_scores([outcome.score for _, outcome in answered], joined))


def join_lists(pieces: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Lists under each name of the first, one after the other; other values are the first's."""
    return {
        name: [item for piece in pieces for item in piece[name]] if isinstance(value, list) else value
        for name, value in pieces[0].items()
    }


def _merge_scores(scores: Sequence[Score | None], joined: bool) -> Score | None:
    present = [score for score in scores if score is not None]
    if not present or len(present) < len(scores):
        return None
    first = present[0]
    loss, weight = sum(score.loss for score in present), sum(score.weight for score in present)
    reference = join_lists([score.reference for score in present]) if joined else first.reference
    return Score(first.id, loss, weight, reference, first.shown)


def merge_class_scores(
    scores: Sequence[Sequence[float]], weights: Sequence[float], how: str, *, several: bool
) -> tuple[Any, list[float]]:
    """(prediction, scores) as class_answers gives them, from those of the pieces.

    mean: weighted by what each piece stands for. max: the largest score of each class, divided by their sum where a row
    has one class. One piece stays as it is. scores: [pieces, classes]. several: a row may have any number of classes.

    >>> merge_class_scores([[0.5, 0.5], [1.0, 0.0]], [1.0, 3.0], "mean", several=False)
    (0, [0.875, 0.125])
    """
    table = np.asarray(scores, np.float64)
    if len(table) == 1:
        merged = table[0]
    elif how == "max":
        merged = table.max(axis=0)
        merged = merged if several else merged / merged.sum()
    else:
        merged = _weighted_mean(table, weights)
    prediction: Any = (merged > 0.5).astype(int).tolist() if several else int(merged.argmax())
    return prediction, merged.tolist()


def merge_numbers(values: Sequence[float], weights: Sequence[float], how: str) -> float:
    """One number from those of the pieces: their weighted mean, or the largest. Pieces of weight 0 do not count."""
    kept = [(value, weight) for value, weight in zip(values, weights, strict=True) if weight > 0]
    if len(kept) == 1:
        return kept[0][0]
    if how == "max":
        return max(value for value, _ in kept)
    table = np.array([[value] for value, _ in kept])
    return float(_weighted_mean(table, [weight for _, weight in kept])[0])


def _weighted_mean(table: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """[pieces, n] -> [n]."""
    shares = np.asarray(weights, np.float64)
    return (table * shares[:, None]).sum(axis=0) / shares.sum()
