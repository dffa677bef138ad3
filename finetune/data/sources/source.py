"""One source of a split, opened by its form: text files, images, typed columns, the hub, built-in sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from finetune.data.columns import Wanted
from finetune.data.sources.image_folder import COLUMNS, list_images
from finetune.data.sources.joined_table import PartRows
from finetune.data.sources.locate import READERS, locate, shown
from finetune.data.sources.peek import columns_of
from finetune.data.sources.rows import convert_file, convert_images
from finetune.recipe.data import SourceSection

Notify = Callable[[str], None]


def open_source(
    name: str, source: SourceSection, wanted: Wanted, limit: int | None, notify: Notify
) -> Iterator[PartRows]:
    """The rows of each file of a source for the split `name`; `limit` counts over all of them."""
    found = locate(source)
    if not found.files:
        opened = _open_builtin if found.format == "builtin" else _open_hub
        yield opened(name, source, wanted, limit, notify)
        return
    left = limit
    for path in found.files:
        if found.format == "imagefolder":
            rows, mapping = _open_images(path, wanted, left)
        elif found.format in READERS:
            rows, mapping = _open_text(path, found.format, source, wanted, left)
        else:
            rows, mapping = _open_columns(path, found.format, wanted, left)
        yield rows, mapping
        if left is not None:
            left -= len(rows)
            if left <= 0:
                return


def _open_text(path: Path, form: str, source: SourceSection, wanted: Wanted, limit: int | None) -> PartRows:
    mapping = wanted.resolve(columns_of(path, form, source), shown(path))
    return convert_file(path, form, source, mapping, wanted.required, limit), mapping


def _open_images(folder: Path, wanted: Wanted, limit: int | None) -> PartRows:
    listing = list_images(folder)
    mapping = wanted.resolve(COLUMNS, shown(folder))
    return convert_images(folder, listing, mapping, wanted.required, limit), mapping


def _open_columns(path: Path, form: str, wanted: Wanted, limit: int | None) -> PartRows:
    from finetune.data.sources.arrow_rows import ArrowRows, file_fingerprint, map_arrow, unpack_parquet

    lies = unpack_parquet(path) if form == "parquet" else path
    mapping = wanted.resolve(map_arrow([lies]).column_names, shown(path))
    return ArrowRows([lies], shown(path), mapping, wanted.required, limit, file_fingerprint([path])), mapping


def _open_builtin(name: str, source: SourceSection, wanted: Wanted, limit: int | None, notify: Notify) -> PartRows:
    from finetune.data.sources.arrow_rows import ArrowRows, map_arrow
    from finetune.data.sources.builtin import open_builtin

    path, called = open_builtin(source, name)
    mapping = wanted.resolve(map_arrow([path]).column_names, called)
    return ArrowRows([path], called, mapping, wanted.required, limit, path.parent.name), mapping


def _open_hub(name: str, source: SourceSection, wanted: Wanted, limit: int | None, notify: Notify) -> PartRows:
    from finetune.data.sources.arrow_rows import ArrowRows, file_fingerprint, map_arrow
    from finetune.data.sources.hub import fetch_hub

    paths, called = fetch_hub(source, name, notify), f"{source.source}/{source.split or name}"
    mapping = wanted.resolve(map_arrow(paths).column_names, called)
    return ArrowRows(paths, called, mapping, wanted.required, limit, file_fingerprint(paths)), mapping
