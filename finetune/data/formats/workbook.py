"""Reader of Excel workbooks (.xlsx): one sheet, whose first row that is not empty names the columns."""

from __future__ import annotations

import datetime
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

from finetune.data.bad_rows import BadRow, BlankLine
from finetune.data.columns import nearest_name
from finetune.data.formats.compression import unreadable
from finetune.data.formats.delimited import check_header
from finetune.data.formats.lines import NumberedRow
from finetune.errors import UserError
from finetune.recipe.data import SourceSection
from finetune.units import format_number

MAX_ROWS = 1_048_576  # Excel's own limit
STYLES = "xl/styles.xml"
MAX_STYLE_ELEMENTS = (
    600_000  # two tags for each of Excel's 65,490 formats, and what is inside; all become objects in memory
)


def read_workbook(path: Path, source: SourceSection) -> Iterator[NumberedRow]:
    """The rows of a sheet with their numbers in Excel. Empty rows and cells are left out.

    Whole numbers are integers, dates are ISO text, formulas the values that Excel stored. A cell with an error, or a
    formula without a stored value, makes its row bad.
    Raises: UserError if the file is no workbook, or has no such sheet.
    """
    header, before = None, 0
    for number, cells in _numbered_cells(path, source):
        if header is None:
            header, before = (
                check_header(source.header, path, 1) if source.header else _names(cells, path, number),
                number,
            )
            if not source.header:
                continue
        if len(header) == 1:
            yield from ((blank, BlankLine()) for blank in range(before + 1, number))
        before = number
        try:
            yield number, _row(header, cells)
        except BadRow as bad:
            yield number, bad


def _names(cells: list[tuple[Any, bool]], path: Path, number: int) -> list[str]:
    names = ["" if cell.value is None else str(_plain(cell.value)) for cell, _ in cells]
    while names and not names[-1]:
        names.pop()
    return check_header(names, path, number)


def workbook_columns(path: Path, source: SourceSection) -> list[str]:
    """The names of the columns of a sheet."""
    rows = _numbered_cells(path, source)
    number, cells = next(rows, (1, []))
    return check_header(source.header, path, 1) if source.header else _names(cells, path, number)


def _row(header: Sequence[str], cells: list[tuple[Any, bool]]) -> dict[str, Any]:
    row = {}
    for index, (cell, unsaved) in enumerate(cells):
        if unsaved:
            raise BadRow(f"the formula in {cell.coordinate} has no stored value; open and save the file in Excel")
        if cell.value is None:
            continue
        if cell.data_type == "e":
            raise BadRow(f"{cell.coordinate} is an error ({cell.value})")
        if index >= len(header):
            raise BadRow(f"{cell.coordinate} has a value, but the header has {format_number(len(header), 'column')}")
        row[header[index]] = _plain(cell.value)
    return row


def _plain(value: Any) -> Any:
    """A value as JSON has it. Excel does not tell 1 from 1.0, so whole numbers are integers."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, datetime.datetime):
        return value.date().isoformat() if value.time() == datetime.time() else value.isoformat(" ")
    return value if isinstance(value, (str, int, float, bool)) else str(value)


def _numbered_cells(path: Path, source: SourceSection) -> Iterator[tuple[int, list[tuple[Any, bool]]]]:
    """(row number in Excel, [(cell, whether it is a formula without a stored value)]) of the rows that are not empty."""
    for number, cells in _all_cells(path, source):
        if any(cell.value is not None for cell, _ in cells):
            yield number, cells


def _all_cells(path: Path, source: SourceSection) -> Iterator[tuple[int, list[tuple[Any, bool]]]]:
    with _opened(path, values=True) as book:
        rows = _sheet(book, path, source).iter_rows()
        if not _has_formulas(path):
            for number, cells in _within_limit(rows, path):
                yield number, [(cell, False) for cell in cells]
            return
        with _opened(path, values=False) as formulas:
            pairs = zip_longest(rows, _sheet(formulas, path, source).iter_rows(), fillvalue=())
            for number, (cells, written) in _within_limit(pairs, path):
                both = zip(cells, written, strict=False)
                yield (
                    number,
                    [
                        (cell if cell.value is not None else other, cell.value is None and other.value is not None)
                        for cell, other in both
                    ],
                )


def _within_limit(rows: Iterable[Any], path: Path) -> Iterator[tuple[int, Any]]:
    """The rows with their numbers, the first one 1. Raises: UserError beyond the last row that a workbook can have: a cell
    that claims to be in row 10^12 would have as many empty ones made before it.
    """
    for number, row in enumerate(rows, start=1):
        if number > MAX_ROWS:
            raise UserError(
                f"has a cell below row {MAX_ROWS:,}, the last one of a workbook",
                where=str(path),
                remedy="The file is damaged: save it again in Excel, or as .csv.",
            )
        yield number, row


def _check_formats(path: Path) -> None:
    """Raises: UserError for more cell formats than Excel can write: all of them are read, whatever they are for."""
    with zipfile.ZipFile(path) as archive:
        if STYLES not in archive.namelist():
            return
        count = 0
        with archive.open(STYLES) as file:
            while chunk := file.read(1 << 20):
                count += chunk.count(b"<")
                if count > MAX_STYLE_ELEMENTS:
                    raise UserError(
                        f"has more than {MAX_STYLE_ELEMENTS:,} elements in its styles",
                        where=str(path),
                        remedy="Save the sheet as .csv, or copy its values into a new workbook.",
                    )


def _has_formulas(path: Path) -> bool:
    """Whether any sheet has a formula: an element <f> in its XML."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.startswith("xl/worksheets/") and name.endswith(".xml"):
                with archive.open(name) as file:
                    tail = b""
                    while chunk := file.read(1 << 20):
                        if b"<f>" in tail + chunk or b"<f " in tail + chunk:
                            return True
                        tail = chunk[-2:]
    return False


@contextmanager
def _opened(path: Path, *, values: bool) -> Iterator[Any]:
    """The workbook, read row by row. values: the stored values of formulas rather than the formulas."""
    import openpyxl
    from openpyxl.utils.exceptions import InvalidFileException

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about styles and validation rules, which are not read
            _check_formats(path)
            book = openpyxl.load_workbook(path, read_only=True, data_only=values, keep_links=False)
        try:
            yield book
        finally:
            book.close()
    except UserError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error
    except (InvalidFileException, zipfile.BadZipFile, SyntaxError, LookupError, TypeError, ValueError) as error:
        remedy = "Save it as .xlsx or .csv; workbooks with a password and .xls files cannot be read."
        raise UserError("is not an .xlsx workbook", where=str(path), remedy=remedy) from error
    except Exception as error:  # of damaged XML inside, openpyxl raises what happens to fail
        raise unreadable(path, error) from error


def _sheet(book: Any, path: Path, source: SourceSection) -> Any:
    """The sheet of a source: by name, or the first one. Raises: UserError if there is none."""
    names = [sheet.title for sheet in book.worksheets]
    if not names or (source.sheet and source.sheet not in names):
        near = nearest_name(source.sheet, names)
        raise UserError(
            f"has no sheet {source.sheet!r}" + (f"; did you mean {near!r}?" if near else ""),
            where=str(path),
            remedy=f"Set `sheet:` to one of {', '.join(names)}.",
        )
    sheet = book[source.sheet or names[0]]
    sheet.reset_dimensions()  # some programs write wrong ones, and cells outside would be left out
    return sheet


def workbook_notes(path: Path, source: SourceSection) -> list[str]:
    """Which of several sheets is read."""
    with _opened(path, values=True) as book:
        names = [sheet.title for sheet in book.worksheets]
    notes = []
    unnamed = [name for name in ([] if source.header else workbook_columns(path, source)) if name.startswith("column_")]
    if unnamed:
        notes.append(f"columns without a name are called {', '.join(unnamed)}")
    if source.sheet or len(names) < 2:
        return notes
    return [*notes, f"sheet {names[0]!r} is read; others are not: {', '.join(names[1:])}; `sheet:` chooses one"]
