"""What users read of an answer, as JSON values, and which fields it has: the forms that several tasks share.

The fields of a record are known before the first answer, so that tables (CSV, Parquet) have their columns from the start.
A field is "text", "number" (float), "integer" or "truth", or of such fields a list ([field]) or an object ({name: field}).
Any value may be null.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.errors import UserError
from finetune.tasks.batch import RecordOptions

Fields = Mapping[str, Any]

ASKED = "asked"
"""Key of an encoded example: what of the row only its record needs, such as the words. It is not stored with a split."""

SCORED_LABEL: Fields = {"label": "text", "score": "number"}
TOKEN_LOGPROB: Fields = {"token": "text", "logprob": "number"}
SET_THRESHOLD = 0.5  # from which score on a class or a box is in an answer that may have any number of them


def figure(value: float) -> float:
    """A number of a model with the seven digits that float32 has. Zero has no sign. Raises: BadRow if it is not finite."""
    if not math.isfinite(value):
        raise BadRow(f"the model's answer is not a finite number ({value})")
    return float(f"{value:.7g}") + 0.0  # not -0.0


def class_fields(options: RecordOptions, *, several: bool) -> Fields:
    """See class_record."""
    if several:
        return {"labels": [SCORED_LABEL]}
    return {**SCORED_LABEL, "labels": [SCORED_LABEL]} if options.top_k > 1 else SCORED_LABEL


def class_record(
    values: Mapping[str, Any], names: Sequence[str], options: RecordOptions, *, several: bool
) -> dict[str, Any]:
    """{"label": "positive", "score": 0.98}, with top_k also "labels": the likeliest [{"label", "score"}, ...].

    several (a row may have any number of labels): {"labels": [...]}, those from options.threshold (0.5) on, the
    likeliest first. values: as class_answers gives them. Raises: BadRow for scores that are not finite.
    """
    scores = [figure(score) for score in values["scores"]]
    if several:
        limit = SET_THRESHOLD if options.threshold is None else options.threshold
        chosen = [index for index, score in enumerate(scores) if score >= limit]
        return {"labels": _listed(sorted(chosen, key=lambda index: -scores[index]), names, scores)}
    prediction = int(values["prediction"])
    record: dict[str, Any] = {"label": names[prediction], "score": scores[prediction]}
    if options.top_k > 1:
        best = heapq.nsmallest(options.top_k, range(len(scores)), key=lambda i: (-scores[i], i != prediction, i))
        record["labels"] = _listed(best, names, scores)
    return record


def _listed(indices: Sequence[int], names: Sequence[str], scores: Sequence[float]) -> list[dict[str, Any]]:
    return [{"label": names[index], "score": scores[index]} for index in indices]


def text_fields(options: RecordOptions) -> Fields:
    """See text_record."""
    fields: Fields = {"text": "text", "finish_reason": "text"}
    return {**fields, "logprobs": [TOKEN_LOGPROB]} if options.logprobs else fields


def text_record(values: Mapping[str, Any], options: RecordOptions) -> dict[str, Any]:
    """{"text", "finish_reason": "stop" or "length"}, and with options.logprobs "logprobs": [{"token", "logprob"}].

    values: of a written answer, under these names. finish_reason is null where the generator does not say it.
    Raises: BadRow for log-probabilities that are not finite.
    """
    record = {"text": values["text"], "finish_reason": values.get("finish_reason")}
    if options.logprobs:
        listed = values.get("logprobs")
        record["logprobs"] = listed and [{"token": one["token"], "logprob": figure(one["logprob"])} for one in listed]
    return record


def refuse_options(options: RecordOptions, task: str, *, takes: Sequence[str], because: str = "") -> None:
    """Raises: UserError for an option of the record, other than its default, that the task's answers have no use for.

    takes: names of RecordOptions that the task uses. because: what to say of the others.
    """
    plain = RecordOptions()
    for name in ("top_k", "threshold", "logprobs"):
        if name not in takes and getattr(options, name) != getattr(plain, name):
            flag = f"--{name.replace('_', '-')}"
            usable = " and ".join(f"--{other.replace('_', '-')}" for other in takes)
            raise UserError(
                f"{flag} does not apply to {task}{because}",
                where=flag,
                remedy=f"Leave it out; {usable} can be set." if usable else "Leave it out.",
            )
