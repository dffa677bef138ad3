"""How new data is read: `--read format=csv`, `--read encoding=cp1252`, any key of a source of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from finetune.data.columns import nearest_name
from finetune.errors import UserError
from finetune.recipe.data import SourceSection

FLAG = "--read"
MAX_DIGITS = 18
KEYS = tuple(name for name in SourceSection.model_fields if name not in ("source", "columns"))


def asked_sources(data: Sequence[str], read: Sequence[str] = ()) -> list[SourceSection]:
    """A source for each of `data`, all read in the same way. read: KEY=VALUE; a list of names is divided by commas.

    Raises: UserError for a key or a value that a source does not have.
    """
    options: dict[str, Any] = {}
    for text in read:
        key, mark, value = text.partition("=")
        if not mark or key not in KEYS or key in options:
            near = nearest_name(key, KEYS)
            what = f"{text!r} is not KEY=VALUE" if not mark else f"{key} is given twice" if key in options else ""
            raise UserError(
                what or f"there is no key {key!r}" + (f" (did you mean {near}?)" if near else ""),
                where=FLAG,
                remedy=f"The keys are those of a source in a recipe: {', '.join(KEYS)}.",
            )
        options[key] = [name.strip() for name in value.split(",")] if key == "header" else value
    try:
        return [SourceSection(source=source, **_typed(options)) for source in data]
    except ValidationError as error:
        first = error.errors()[0]
        if first["loc"] == ("source",):
            raise UserError(f"cannot name data: {first['msg']}", where="--data", remedy="Give another name.") from None
        key = str(first["loc"][0]) if first["loc"] else ""
        raise UserError(
            f"{key}: {first['msg']}", where=f"{FLAG} {key}={options.get(key, '')}", remedy="See docs/your-data.md."
        ) from None


def _typed(options: dict[str, Any]) -> dict[str, Any]:
    """With a number in place of its digits; what is no number a reader could have is refused as it is."""
    return {
        key: int(value) if key == "limit" and value.isdecimal() and len(value) <= MAX_DIGITS else value
        for key, value in options.items()
    }
