"""Opens a source as rows that are asked: files of every format, folders, images, sets, standard input."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from finetune.data.formats.registry import READERS, STREAMED
from finetune.data.formats.standard_input import STDIN
from finetune.data.image_formats import can_decode
from finetune.data.sources.image_folder import list_images
from finetune.data.sources.locate import locate
from finetune.data.sources.located import display_path
from finetune.data.sources.raw_rows import ImageRows, Placed, RawRows, TextRows, TypedRows
from finetune.errors import UserError
from finetune.recipe.data import SourceSection
from finetune.recipe.user_path import user_path

PIPE = "-"  # the name of standard input

Notify = Callable[[str], None]


def open_parts(source: SourceSection, notify: Notify) -> Iterator[RawRows]:
    """The parts of one source. A limit counts over all of its files, so those before are read through to count them."""
    limit = source.limit
    for part in _open_all(source, notify):
        yield part if limit is None else Limited(part, limit)
        if limit is not None and part.resumable:
            limit -= part.after(limit)[0]
            if limit <= 0:
                return


def _open_all(source: SourceSection, notify: Notify) -> Iterator[RawRows]:
    if source.source == PIPE:
        yield _open_pipe(source)
        return
    images = _image_files(source)
    if images:
        base = Path()
        named = [(str(path), None) for path in images]
        name = display_path(images[0]) if len(images) == 1 else source.source
        yield ImageRows(name, base, named)
        return
    located = locate(source, "")
    for note in located.notes:
        notify(note)
    if located.format in ("builtin", "hub"):
        yield _open_set(source, located.format, notify)
    source = located.applied_to(source)
    for path in located.files:
        if located.format == "imagefolder":
            listing = list_images(path)
            found = [(entry[0], entry[1]) for entry in listing.images]
            yield ImageRows(display_path(path), path, found, listing.notices())
        elif located.format in READERS:
            yield TextRows(path, located.format, source)
        else:
            yield _open_parquet(path) if located.format == "parquet" else _open_arrow([path], display_path(path))


def _open_pipe(source: SourceSection) -> RawRows:
    file_format = "jsonl" if source.format == "auto" else source.format
    if file_format not in STREAMED:
        raise UserError(
            f"{file_format} cannot be read from standard input",
            where="--data -",
            remedy=f"Write it to a file, or use one of {', '.join(STREAMED)}.",
        )
    return TextRows(STDIN, file_format, source)


def _image_files(source: SourceSection) -> list[Path]:
    """The image files that a source names: one, or those of a pattern that matches nothing else."""
    if source.format not in ("auto", "imagefolder"):
        return []
    path = user_path(source.source)
    if path.is_file():
        return [path] if can_decode(path.suffix) else []
    if not glob.has_magic(source.source):
        return []
    found = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
    files = [Path(name) for name in found if Path(name).is_file()]
    return files if files and all(can_decode(file.suffix) for file in files) else []


def _open_set(source: SourceSection, kind: str, notify: Notify) -> RawRows:
    from finetune.data.sources.builtin import find_builtin, open_builtin
    from finetune.data.sources.hub import fetch_hub

    if not source.split and kind == "hub":
        raise UserError(
            "a set of the hub has several splits", where=source.source, remedy="Choose one: --read split=test."
        )
    if kind == "builtin":
        find_builtin(source, "")
        path, name = open_builtin(source, "")
        return _open_arrow([path], name)
    return _open_arrow(fetch_hub(source, source.split, notify), f"{source.source}/{source.split}")


def _open_arrow(paths: list[Path], name: str) -> RawRows:
    from finetune.data.sources.arrow_files import map_arrow
    from finetune.data.sources.typed_batches import arrow_batches

    table = map_arrow(paths)
    return TypedRows(
        name,
        table.schema,
        table.num_rows,
        partial(arrow_batches, paths),
        ["arrow", *paths],
    )


def _open_parquet(path: Path) -> RawRows:
    from finetune.data.sources.arrow_files import parquet_schema
    from finetune.data.sources.typed_batches import parquet_batches

    schema, count = parquet_schema(path)
    return TypedRows(
        display_path(path),
        schema,
        count,
        partial(parquet_batches, path, count),
        ["parquet", path],
    )


class Limited(RawRows):
    """The first rows of a part."""

    def __init__(self, part: RawRows, limit: int) -> None:
        self._part, self._limit = part, limit
        self.name, self.columns, self.nested, self.hint = part.name, part.columns, part.nested, part.hint
        self.field_types, self.unkeepable, self.base = part.field_types, part.unkeepable, part.base
        self.words, self.lines, self.resumable = part.words, part.lines, part.resumable

    @property
    def notes(self) -> Sequence[str]:
        return self._part.notes

    def after(self, skip: int) -> tuple[int, Iterator[Placed]]:
        """See RawRows."""
        skipped, rows = self._part.after(min(skip, self._limit))
        return skipped, islice(rows, self._limit - skipped)

    def identity(self) -> list[Any]:
        """See RawRows."""
        found = self._part.identity()
        return [*found, self._limit] if found else []

    def estimate(self) -> int | None:
        """See RawRows."""
        found = self._part.estimate()
        return None if found is None else min(found, self._limit)
