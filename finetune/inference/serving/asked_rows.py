"""The body of POST /predict as rows and options, in any of the forms that it may have.

    application/json           {"rows": [{...}, ...], "top_k": 3}, [{...}, ...], or one row {...}
    application/jsonl          one row per line (also application/x-ndjson)
    image/*                    the bytes of one image
    multipart/form-data        images as files, and options as fields
A row may be a text alone, which is what a line of a text file is to `finetune predict`. Options that have no place in the
body are in the query: /predict?top_k=3.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune.data.columns import nearest_name
from finetune.inference.serving.faults import RequestFault, malformed
from finetune.inference.serving.json_body import MOST_VALUES, count_values, parse_json, too_many_values
from finetune.inference.serving.limits import Limits
from finetune.inference.serving.messages import ModelFacts, Record
from finetune.inference.serving.multipart import parse_multipart
from finetune.inference.serving.row_keys import check_lone_row

OPTIONS = ("top_k", "threshold")
MOST_CLASSES = 1000
LINES = ("application/jsonl", "application/x-ndjson", "application/x-jsonlines")
FORMS = "application/json, application/jsonl, image/* or multipart/form-data"


@dataclass(frozen=True)
class AskedRows:
    """rows: those that the model is to answer. faults: position in the request -> why that row is not among them.

    top_k, threshold: as `finetune predict` takes them. values: that the rows hold together; see count_parts.
    """

    rows: list[dict[str, Any]]
    top_k: int = 1
    threshold: float | None = None
    faults: dict[int, Record] = field(default_factory=dict)
    values: int = 0

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
        rows, given = _json_rows(body, facts)
    elif kind in LINES:
        rows, given = list(_lines(body, limits.rows)), {}
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


def _lines(body: bytes, most: int) -> Iterator[Any]:
    """The values of the lines that are not blank. Raises: RequestFault (413) as soon as there are too many of them."""
    number, at, left = 1, 0, MOST_VALUES
    for count, found in enumerate(re.finditer(rb"\S[^\n]*", body), 1):
        if count > most:
            raise RequestFault(413, "too_many_rows", f"more than {most:,} rows in one request", param="rows")
        number, at = number + body.count(b"\n", at, found.start()), found.start()
        left -= count_values(found[0], left)
        if left < 0:
            raise too_many_values("the body", MOST_VALUES)
        yield parse_json(found[0], what=f"line {number}")


def _json_rows(body: bytes, facts: ModelFacts) -> tuple[list[Any], dict[str, Any]]:
    value = parse_json(body)
    if isinstance(value, list):
        return value, {}
    if isinstance(value, str) and facts.line_role:
        return [value], {}
    if not isinstance(value, dict):
        raise malformed(f"the body is {_kind(value)}; send rows as objects")
    if "rows" not in value:
        check_lone_row(value, facts, OPTIONS)
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
            near = nearest_name(name, OPTIONS)
            hint = f"; did you mean {near}?" if near else f"; known: {', '.join(OPTIONS)}"
            raise malformed(
                f"unknown option {name[:100]!r} in the query{hint}", param=name[:100], kind="unknown_option"
            )
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
    kept, faults, values = [], {}, 0
    for place, row in enumerate(rows):
        if isinstance(row, str) and facts.line_role:
            row = {facts.line_role: row}
        if not isinstance(row, dict):
            wanted = "neither an object nor a text" if facts.line_role else "not an object"
            raise malformed(f"row {place} is {_kind(row)}, {wanted}", param=f"rows[{place}]")
        parts = count_parts(row)
        fault = _row_fault(row, parts, facts, limits)
        if fault is None:
            kept.append(row)
            values += parts
        else:
            faults[place] = fault
    return AskedRows(kept, top_k, threshold, faults, values)


def _row_fault(row: Mapping[str, Any], values: int, facts: ModelFacts, limits: Limits) -> Record | None:
    images = {facts.image, facts.columns.get(facts.image, facts.image)} - {""}
    characters = count_characters([value for key, value in row.items() if key not in images])
    if characters > limits.characters:
        message = f"{characters:,} characters, more than the server's limit of {limits.characters:,} in one row"
    elif values > limits.values:
        message = f"{values:,} values, more than the server's limit of {limits.values:,} in one row"
    else:
        return None
    return {"error": {"kind": "too_long", "message": message}}


def count_characters(value: Any) -> int:
    """Of all texts inside lists and objects."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(len(key) + count_characters(item) for key, item in value.items())
    return sum(map(count_characters, value)) if isinstance(value, list) else 0


def count_parts(value: Any) -> int:
    """The number of values inside lists and objects, at any depth, and of the value itself."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(count_parts, items))


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}.get(
        type(value), "a number"
    )
