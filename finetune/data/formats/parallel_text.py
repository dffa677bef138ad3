"""Parallel text: files of equally many lines, the n-th lines of which belong together, such as a sentence in two languages.

Written as one source with the endings in braces: train.{de,en} is train.de and train.en; the columns are called de and en.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.formats.lines import NumberedRow, decode, numbered_lines
from finetune.errors import UserError
from finetune.recipe.data import SourceSection

BRACES = re.compile(r"\{([^{},/]+(?:,[^{},/]+)+)\}")


def is_parallel(name: str) -> bool:
    """Does a source name several files by braces?"""
    return BRACES.search(name) is not None


def parallel_files(path: Path) -> dict[str, Path]:
    """train.{de,en} -> {"de": train.de, "en": train.en}. Raises: UserError if one is not there."""
    match = BRACES.search(str(path))
    if match is None:
        raise UserError(
            "names one file, where parallel text needs several", where=str(path), remedy="Write it as train.{de,en}."
        )
    text = str(path)
    files = {part: Path(text[: match.start()] + part + text[match.end() :]) for part in match[1].split(",")}
    for file in files.values():
        if not file.is_file():
            raise UserError("no such file", where=str(file), remedy=f"It belongs to {path.name}.")
    return files


def read_parallel(path: Path, source: SourceSection) -> Iterator[NumberedRow]:
    """{"de": line, "en": line} of each line number; one with an empty side is a bad row. Raises: UserError if the files
    have unequally many lines.
    """
    files = parallel_files(path)
    readers = [numbered_lines(file) for file in files.values()]
    for number, lines in enumerate(zip_longest(*readers), start=1):
        short = [name for name, line in zip(files, lines, strict=True) if line is None]
        if short:
            raise UserError(
                f"{', '.join(short)} ends before line {number}, the rest goes on",
                where=f"{path}:{number}",
                remedy="Parallel files have equally many lines: one may have lost some, so that others are mismatched.",
            )
        yield number, _row(list(files), [line for _, line in lines])


def _row(names: list[str], lines: list[bytes]) -> dict[str, Any] | BadRow:
    row = {}
    for name, line in zip(names, lines, strict=True):
        try:
            row[name] = decode(line).strip()
        except BadRow as error:
            return BadRow(f"{name}: {error}")
        if not row[name]:
            return BadRow(f"{name} is empty")
    return row
