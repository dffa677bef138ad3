"""`finetune prepare`: read, split and encode the data of a recipe now, so that a training starts at once."""

from __future__ import annotations

from finetune.app.opening import open_recipe
from finetune.app.preparation.child import ensure_prepared
from finetune.app.preparation.entry import read_manifest
from finetune.app.preparation.request import Request
from finetune.app.recipe_check import check_recipe
from finetune.terminal import print_line
from finetune.units import format_number


def prepare(*, recipe: str, sets: list[str], workers: int | None) -> None:
    """Prepare, and print what there is. Does nothing if it was done before.

    Raises: UserError that names files and rows for data that cannot be used.
    """
    loaded = open_recipe(recipe, sets)
    for warning in loaded.warnings:
        print_line(f"note: {warning}")
    check_recipe(loaded)
    folder = ensure_prepared(Request.of(loaded.recipe), workers)
    manifest = read_manifest(folder)
    assert manifest is not None, f"{folder} was published a moment ago"
    for line in (*manifest["messages"], *manifest["notes"]):
        print_line(line)
    for split, count in manifest["examples"].items():
        print_line(f"{split:10}  {manifest['facts'].get(split, format_number(count, 'example'))}")
    print_line(f"prepared in {folder}")
