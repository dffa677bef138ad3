"""Reader of parallel text: files whose n-th lines belong together, such as a sentence in two languages.

A source names them with the extensions in braces: train.{de,en} is train.de and train.en, with the columns de and en.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.formats.encodings import decode
from finetune.data.formats.lines import NumberedRow, numbered_lines
from finetune.errors import UserError
from finetune.recipe.data import SourceSection

BRACES = re.compile(r"\{([^{},/]+(?:,[^{},/]+)+)\}")


def is_parallel(name: str) -> bool:
    """Whether a source names several files with braces."""
    return BRACES.search(name) is not None


def parallel_files(path: Path) -> dict[str, Path]:
    """The files of a source: train.{de,en} -> {"de": train.de, "en": train.en}. Raises: UserError if one is missing."""
    match = BRACES.search(str(path))
    if match is None:
        raise UserError(
            "names one file, but parallel text needs several", where=str(path), remedy="Write it as train.{de,en}."
        )
    text = str(path)
    files = {part: Path(text[: match.start()] + part + text[match.end() :]) for part in match[1].split(",")}
    for file in files.values():
        if not file.is_file():
            raise UserError("no such file", where=str(file), remedy=f"It is one of the files of {path.name}.")
    return files


def files_of_source(path: Path, source: SourceSection) -> list[Path]:
    """All files of a source. Raises: UserError if one is missing."""
    return list(parallel_files(path).values())


def read_parallel(path: Path, source: SourceSection) -> Iterator[NumberedRow]:
    """One row per line number: {"de": line, "en": line}. If one of the lines is empty, the row is a BadRow.

    Raises: UserError if the files have different numbers of lines.
    """
    files = parallel_files(path)
    readers = [numbered_lines(file, source.encoding) for file in files.values()]
    for number, lines in enumerate(zip_longest(*readers), start=1):
        ended = [name for name, line in zip(files, lines, strict=True) if line is None]
        if ended:
            raise UserError(
                f"{', '.join(ended)} ends before line {number}, but the other files do not",
                where=f"{path}:{number}",
                remedy="Parallel files must have equal numbers of lines. A missing line mismatches all lines after it.",
            )
        yield number, _row(list(files), [line for _, line in lines], source.encoding)


def _row(names: list[str], lines: list[bytes], encoding: str) -> dict[str, Any] | BadRow:
    row = {}
    for name, line in zip(names, lines, strict=True):
        try:
            row[name] = decode(line, encoding).strip()
        except BadRow as error:
            return BadRow(f"{name}: {error}")
        if not row[name]:
            return BadRow(f"{name} is empty")
    return row
