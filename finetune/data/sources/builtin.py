"""Sets that need neither a network nor a file of the user. A new one is a file and a line here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.data.columns import nearest_name
from finetune.data.sources.arrow_rows import keep_table
from finetune.data.sources.locate import BUILTIN
from finetune.errors import UserError
from finetune.recipe.data import SourceSection


@dataclass(frozen=True)
class Builtin:
    """build: split -> its rows. version: raised when the rows change. columns, splits: known without building."""

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
        "scikit-learn's 1,797 handwritten digits, 8 x 8 grey; label: 0 to 9.",
        ("image", "label"),
        ("train", "validation"),
        "1",
        _digits,
    ),
    "shapes": Builtin(
        "1,000 drawn images of 96 x 96 pixels with boxes round circles, squares and triangles.",
        ("image", "objects"),
        ("train", "validation"),
        "1",
        _shapes,
    ),
}


def find_builtin(source: SourceSection, name: str) -> tuple[str, Builtin, str]:
    """(name, set, split) that a source means for the split `name`. Raises: UserError if there is none."""
    wanted = source.source.removeprefix(BUILTIN)
    if wanted not in BUILTINS:
        near = nearest_name(wanted, BUILTINS)
        raise UserError(
            f"no built-in set {wanted!r}" + (f"; did you mean {near}?" if near else ""),
            where=source.source,
            remedy=f"There are {', '.join(BUILTIN + each for each in BUILTINS)}.",
        )
    found = BUILTINS[wanted]
    split = source.split or name
    if split not in found.splits:
        raise UserError(
            f"has no split {split!r}", where=source.source, remedy=f"Set `split:` to {' or '.join(found.splits)}."
        )
    return wanted, found, split


def open_builtin(source: SourceSection, name: str) -> tuple[Path, str]:
    """(Arrow file with the rows, what places are told with)."""
    import pyarrow as pa

    wanted, found, split = find_builtin(source, name)
    path = keep_table(
        "builtin", f"{wanted} {split} {found.version}", lambda: pa.Table.from_pylist(list(found.build(split)))
    )
    return path, f"{BUILTIN}{wanted}/{split}"
