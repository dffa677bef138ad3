"""Opens one source of a split: text files, image folders, Parquet and Arrow files, the hub, or a built-in dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from finetune.data.columns import ColumnSpec
from finetune.data.formats.registry import READERS
from finetune.data.sources.image_folder import COLUMNS, list_images
from finetune.data.sources.joined_table import PartRows
from finetune.data.sources.locate import locate
from finetune.data.sources.located import display_path
from finetune.data.sources.peek import head_of, nested_names
from finetune.data.sources.rows import convert_file, convert_images
from finetune.recipe.data import SourceSection

Notify = Callable[[str], None]


def open_source(
    name: str, source: SourceSection, spec: ColumnSpec, limit: int | None, notify: Notify
) -> Iterator[PartRows]:
    """The rows of each file of a source, for the split `name`, at most `limit` rows in total.

    Raises: UserError if the source or one of its columns is missing, or a file cannot be read.
    """
    located = locate(source, name)
    for note in located.notes:
        notify(f"{name}: {note}")
    if not located.files:
        opener = _open_builtin if located.format == "builtin" else _open_hub
        yield opener(name, source, spec, limit, notify)
        return
    source, remaining, said = located.applied_to(source), limit, _FileNotes(name, notify)
    for path in located.files:
        if located.format == "imagefolder":
            rows, mapping = _open_images(name, path, spec, remaining, notify)
        elif located.format in READERS:
            rows, mapping = _open_text(path, located.format, source, spec, remaining, said)
        else:
            rows, mapping = _open_arrow(path, located.format, spec, remaining)
        yield rows, mapping
        if remaining is not None:
            remaining -= len(rows)
            if remaining <= 0:
                break
    said.report()


class _FileNotes:
    """Notes on how files are read: the same one is reported once, with the first file and the number of files."""

    def __init__(self, name: str, notify: Notify) -> None:
        self._name, self._notify = name, notify
        self._files: dict[str, list[Path]] = {}

    def add(self, path: Path, notes: Sequence[str]) -> None:
        for note in notes:
            self._files.setdefault(note, []).append(path)

    def report(self) -> None:
        for note, (first, *others) in self._files.items():
            more = f" and {len(others):,} more" if others else ""
            self._notify(f"{self._name}: {display_path(first)}{more}: {note}")


def _open_text(
    path: Path, file_format: str, source: SourceSection, spec: ColumnSpec, limit: int | None, said: _FileNotes
) -> PartRows:
    head = head_of(path, file_format, source)
    said.add(path, head.notes)
    mapping = spec.resolve(head.columns, display_path(path), nested=head.nested, hint=head.hint)
    return convert_file(path, file_format, source, mapping, spec.required, limit), mapping


def _open_images(name: str, folder: Path, spec: ColumnSpec, limit: int | None, notify: Notify) -> PartRows:
    listing = list_images(folder)
    for line in listing.notices():
        notify(f"{name}: {display_path(folder)}: {line}")
    mapping = spec.resolve(COLUMNS, display_path(folder))
    return convert_images(folder, [image[:2] for image in listing.images], mapping, spec.required, limit), mapping


def _open_arrow(path: Path, file_format: str, spec: ColumnSpec, limit: int | None) -> PartRows:
    from finetune.data.sources.arrow_files import check_arrow, file_fingerprint, map_arrow, parquet_to_arrow
    from finetune.data.sources.arrow_rows import ArrowRows

    if file_format == "arrow":
        check_arrow(path)
    arrow_path = parquet_to_arrow(path) if file_format == "parquet" else path
    schema = map_arrow([arrow_path]).schema
    mapping = spec.resolve(schema.names, display_path(path), nested=nested_names(schema))
    return ArrowRows([arrow_path], display_path(path), mapping, spec.required, limit, file_fingerprint([path])), mapping


def _open_builtin(name: str, source: SourceSection, spec: ColumnSpec, limit: int | None, notify: Notify) -> PartRows:
    from finetune.data.sources.arrow_files import map_arrow
    from finetune.data.sources.arrow_rows import ArrowRows
    from finetune.data.sources.builtin import open_builtin

    path, display_name = open_builtin(source, name)
    mapping = spec.resolve(map_arrow([path]).column_names, display_name)
    return ArrowRows([path], display_name, mapping, spec.required, limit, path.parent.name), mapping


def _open_hub(name: str, source: SourceSection, spec: ColumnSpec, limit: int | None, notify: Notify) -> PartRows:
    from finetune.data.sources.arrow_files import file_fingerprint, map_arrow
    from finetune.data.sources.arrow_rows import ArrowRows
    from finetune.data.sources.hub import fetch_hub

    paths, display_name = fetch_hub(source, name, notify), f"{source.source}/{source.split or name}"
    schema = map_arrow(paths).schema
    mapping = spec.resolve(schema.names, display_name, nested=nested_names(schema))
    return ArrowRows(paths, display_name, mapping, spec.required, limit, file_fingerprint(paths)), mapping
