"""The inputs that metrics take: one entry each. What a metric gets, of which field of a prediction, and how it is kept.

To add one: an entry in `INPUTS`. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Input:
    """field: of a prediction's values, which feeds the input. usual: the name that users of `evaluate` give it.

    kind: what it holds of each example: a class (or with several labels 0 or 1 for each), a number, a list of numbers or of
    texts, a text, or an object of its own kind (boxes). feature: its type in `datasets`; "" for objects, whose metric says it.
    dtype: of the column that collects it; "": a column of Python values.
    """

    field: str
    usual: str
    kind: Literal["class", "number", "list", "text", "object"]
    feature: str = ""
    dtype: str = ""


INPUTS: Mapping[str, Input] = {
    "predictions": Input("prediction", "predictions", "class", "int64", "int32"),
    "references": Input("reference", "references", "class", "int64", "int32"),
    "prediction_scores": Input("scores", "predictions", "list", "float32", "float32"),
    "loss_sums": Input("loss", "loss_sums", "number", "float64", "float64"),
    "weights": Input("weight", "weights", "number", "int64", "int64"),
    "values": Input("value", "predictions", "number", "float64", "float64"),
    "targets": Input("target", "references", "number", "float64", "float64"),
    "tags": Input("tags", "predictions", "list", "string"),
    "reference_tags": Input("reference_tags", "references", "list", "string"),
    "texts": Input("text", "predictions", "text", "string"),
    "reference_texts": Input("reference_text", "references", "text", "string"),
    "chosen_rewards": Input("chosen_reward", "predictions", "number", "float64", "float64"),
    "rejected_rewards": Input("rejected_reward", "references", "number", "float64", "float64"),
    "detections": Input("detections", "predictions", "object"),
    "objects": Input("objects", "references", "object"),
}

_BY_FIELD = {one.field: one for one in INPUTS.values()}


def column_type(field: str, multi_label: bool) -> str:
    """The dtype of a field's column; "object" for fields that are not one number, or one list of them, per example."""
    found = _BY_FIELD.get(field)
    if found is not None and found.kind == "class" and multi_label:
        return "int8"
    return (found.dtype if found is not None else "") or "object"
