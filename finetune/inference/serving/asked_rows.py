"""The body of POST /predict as rows and options, in any of the forms that it may have.

    application/json           {"rows": [{...}, ...], "top_k": 3}, [{...}, ...], or one row {...}
    application/jsonl          one row per line (also application/x-ndjson)
    image/*                    the bytes of one image
    multipart/form-data        images as files, and options as fields
Options that have no place in the body are in the query: /predict?top_k=3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune.data.columns import nearest_name
from finetune.inference.serving.faults import RequestFault, malformed
from finetune.inference.serving.json_body import parse_json
from finetune.inference.serving.limits import Limits
from finetune.inference.serving.messages import ModelFacts, Record
from finetune.inference.serving.multipart import parse_multipart

OPTIONS = ("top_k", "threshold")
MOST_CLASSES = 1000
LINES = ("application/jsonl", "application/x-ndjson", "application/x-jsonlines")
FORMS = "application/json, application/jsonl, image/* or multipart/form-data"


@dataclass(frozen=True)
class AskedRows:
    """rows: those that the model is to answer. faults: position in the request -> why that row is not among them.

    top_k, threshold: as `finetune predict` takes them.
    """

    rows: list[dict[str, Any]]
    top_k: int = 1
    threshold: float | None = None
    faults: dict[int, Record] = field(default_factory=dict)

    def merged(self, records: list[Record]) -> list[Record]:
        """The records of `rows` and those of `faults`, each at its place in the request."""
        answers = iter(records)
        count = len(self.rows) + len(self.faults)
        return [
            {**(self.faults[place] if place in self.faults else next(answers)), "row": place} for place in range(count)
        ]


def parse_rows(
    content_type: str, body: bytes, query: Mapping[str, str], facts: ModelFacts, limits: Limits
) -> AskedRows:
    """Raises: RequestFault (400, 413 or 415) for a request that cannot be read. A row that is at fault alone is among
    `faults`.
    """
    kind = content_type.partition(";")[0].strip().lower()
    options: dict[str, Any] = _query_options(query)
    if kind == "application/json":
        rows, given = _json_rows(body)
    elif kind in LINES:
        lines = body.split(b"\n")
        rows, given = [parse_json(line, what=f"line {n}") for n, line in enumerate(lines, 1) if line.strip()], {}
    elif kind.startswith("image/"):
        rows, given = [{_image_role(facts): body}], {}
    elif kind == "multipart/form-data":
        rows, given = _form_rows(body, content_type, facts, limits)
    else:
        raise RequestFault(
            415,
            "content_type",
            f"the content type {kind[:100] or '(none)'} is not read; send {FORMS}",
            param="content-type",
        )
    for name, value in given.items():
        if name in options:
            raise malformed(f"{name} is in the body and in the query", param=name)
        options[name] = value
    return _checked(rows, options, facts, limits)


def _json_rows(body: bytes) -> tuple[list[Any], dict[str, Any]]:
    value = parse_json(body)
    if isinstance(value, list):
        return value, {}
    if not isinstance(value, dict):
        raise malformed(f"the body is {_kind(value)}; send rows as objects")
    if "rows" not in value:
        return [value], {}
    rows = value.pop("rows")
    if not isinstance(rows, list):
        raise malformed(f"rows is {_kind(rows)}, not a list", param="rows")
    for name in value:
        if name not in OPTIONS:
            near = nearest_name(name, OPTIONS)
            hint = f"did you mean {near}?" if near else f"known: rows, {', '.join(OPTIONS)}"
            raise malformed(
                f"unknown option {name[:100]!r} beside rows; {hint}", param=name[:100], kind="unknown_option"
            )
    return rows, value


def _form_rows(
    body: bytes, content_type: str, facts: ModelFacts, limits: Limits
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    rows, given = [], {}
    for part in parse_multipart(body, content_type, most=limits.rows + len(OPTIONS)):
        if part.filename is not None:
            rows.append({_image_role(facts): part.content})
        elif part.name in OPTIONS:
            given[part.name] = _number(part.name, part.content.decode("utf-8", "replace"))
        else:
            raise malformed(
                f"the field {part.name[:100]!r} is neither a file nor one of {', '.join(OPTIONS)}",
                param=part.name[:100],
            )
    return rows, given


def _query_options(query: Mapping[str, str]) -> dict[str, Any]:
    for name in query:
        if name not in OPTIONS:
            raise malformed(f"unknown option {name[:100]!r} in the query", param=name[:100], kind="unknown_option")
    return {name: _number(name, value) for name, value in query.items()}


def _number(name: str, text: str) -> int | float:
    try:
        return int(text) if name == "top_k" else float(text)
    except ValueError:
        raise malformed(f"{name} is {text[:40]!r}, not a number", param=name) from None


def _image_role(facts: ModelFacts) -> str:
    if not facts.image:
        raise RequestFault(415, "content_type", f"the task {facts.task} reads no images", param="content-type")
    return facts.image


def _checked(rows: list[Any], options: Mapping[str, Any], facts: ModelFacts, limits: Limits) -> AskedRows:
    if not rows:
        raise malformed("the request has no rows", param="rows")
    if len(rows) > limits.rows:
        raise RequestFault(
            413, "too_many_rows", f"{len(rows):,} rows, more than {limits.rows:,} in one request", param="rows"
        )
    for name in options:
        if name not in facts.options:
            raise malformed(f"{name} does not apply to {facts.title or facts.task}", param=name, kind="unknown_option")
    top_k, threshold = options.get("top_k", 1), options.get("threshold")
    if isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k <= MOST_CLASSES:
        raise malformed(f"top_k is {top_k!r}, not a whole number from 1 to {MOST_CLASSES:,}"[:200], param="top_k")
    if threshold is not None and (isinstance(threshold, bool) or not isinstance(threshold, (int, float))):
        raise malformed(f"threshold is {_kind(threshold)}, not a number", param="threshold")
    if threshold is not None and not 0 <= threshold <= 1:
        raise malformed("threshold is not between 0 and 1", param="threshold")
    kept, faults = [], {}
    for place, row in enumerate(rows):
        if not isinstance(row, dict):
            raise malformed(f"row {place} is {_kind(row)}, not an object", param=f"rows[{place}]")
        fault = _row_fault(row, facts, limits)
        if fault is None:
            kept.append(row)
        else:
            faults[place] = fault
    return AskedRows(kept, top_k, threshold, faults)


def _row_fault(row: Mapping[str, Any], facts: ModelFacts, limits: Limits) -> Record | None:
    images = {facts.image, facts.columns.get(facts.image, facts.image)} - {""}
    count = count_characters([value for key, value in row.items() if key not in images])
    if count <= limits.characters:
        return None
    message = f"{count:,} characters, more than the server's limit of {limits.characters:,} in one row"
    return {"error": {"kind": "too_long", "message": message}}


def count_characters(value: Any) -> int:
    """Of all texts inside lists and objects."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(len(key) + count_characters(item) for key, item in value.items())
    return sum(map(count_characters, value)) if isinstance(value, list) else 0


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}.get(
        type(value), "a number"
    )
