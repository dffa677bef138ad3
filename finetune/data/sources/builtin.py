"""Built-in datasets, which need neither a network nor files of the user. A new one is a module and an entry here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.data.columns import nearest_name
from finetune.data.sources.arrow_files import cache_table
from finetune.data.sources.locate import BUILTIN
from finetune.errors import UserError
from finetune.recipe.data import SourceSection


@dataclass(frozen=True)
class Builtin:
    """A built-in dataset.

    build: split -> rows. version: part of the cache key, changed whenever the rows change.
    columns, splits: declared, so that recipes can be checked without building the rows.
    """

    summary: str
    columns: tuple[str, ...]
    splits: tuple[str, ...]
    version: str
    build: Callable[[str], Iterator[dict[str, Any]]]


def _docstrings(split: str) -> Iterator[dict[str, Any]]:
    from finetune.data.sources.docstrings import docstring_rows

    return docstring_rows(split)


def _digits(split: str) -> Iterator[dict[str, Any]]:
    from finetune.data.sources.digits import digit_rows

    return digit_rows(split)


def _shapes(split: str) -> Iterator[dict[str, Any]]:
    from finetune.data.sources.shapes import shape_rows

    return shape_rows(split)


PYTHON = ".".join(map(str, sys.version_info[:3]))

BUILTINS: Mapping[str, Builtin] = {
    "docstrings": Builtin(
        "Docstrings of Python's standard library; label: the area of the library.",
        ("text", "label", "name"),
        ("train", "validation"),
        f"2 python {PYTHON}",
        _docstrings,
    ),
    "digits": Builtin(
        "scikit-learn's 1,797 handwritten digits, 8 x 8 grayscale; label: 0 to 9.",
        ("image", "label"),
        ("train", "validation"),
        "1",
        _digits,
    ),
    "shapes": Builtin(
        "1,000 drawn images of 96 x 96 pixels with bounding boxes of circles, squares and triangles.",
        ("image", "objects"),
        ("train", "validation"),
        "1",
        _shapes,
    ),
}


def find_builtin(source: SourceSection, name: str) -> tuple[str, Builtin, str]:
    """(name of the dataset, the dataset, its split) of a source for the split `name`.

    Raises: UserError if there is no such dataset or split.
    """
    set_name = source.source.removeprefix(BUILTIN)
    if set_name not in BUILTINS:
        near = nearest_name(set_name, BUILTINS)
        raise UserError(
            f"no built-in dataset {set_name!r}" + (f"; did you mean {near}?" if near else ""),
            where=source.source,
            remedy=f"Use one of {', '.join(BUILTIN + known for known in BUILTINS)}.",
        )
    builtin = BUILTINS[set_name]
    split = source.split or name
    if split not in builtin.splits:
        raise UserError(
            f"has no split {split!r}", where=source.source, remedy=f"Set `split:` to {' or '.join(builtin.splits)}."
        )
    return set_name, builtin, split


def open_builtin(source: SourceSection, name: str) -> tuple[Path, str]:
    """(Arrow file with the rows, display name). Raises: UserError as find_builtin does."""
    import pyarrow as pa

    set_name, builtin, split = find_builtin(source, name)
    path = cache_table(
        "builtin", f"{set_name} {split} {builtin.version}", lambda: pa.Table.from_pylist(list(builtin.build(split)))
    )
    return path, f"{BUILTIN}{set_name}/{split}"
