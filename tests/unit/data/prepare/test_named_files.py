"""Proves that data is prepared again when an image that its rows name appears, changes or goes, and not otherwise."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from finetune.app.preparation.entry import find_prepared
from finetune.app.preparation.request import Request
from finetune.app.workers.preparing import load, prepare
from finetune.data.prepare.named_files import FILE, list_named_files, named_files_changed, write_named_files
from finetune.data.prepare.progress import Stage
from finetune.recipe.data import SourceSection
from finetune.recipe.recipe import Recipe, recipe_type
from finetune.tasks import CARDS
from finetune.terminal import ProgressLine


class Named:
    def __init__(self, *paths: Path) -> None:
        self.paths = paths

    def named_files(self) -> list[str]:
        return [str(path) for path in self.paths]


def test_every_change_is_seen(tmp_path: Path) -> None:
    first, second = tmp_path / "a b.png", tmp_path / "\udc80.png"
    first.write_bytes(b"1")
    state, paths = list_named_files([Named(first), Named(second), object()])
    assert paths == [str(first), str(second)]
    write_named_files(tmp_path, state, paths)
    assert not named_files_changed(tmp_path)
    for change in (lambda: second.write_bytes(b"2"), lambda: first.write_bytes(b"11"), second.unlink):
        before = list_named_files([Named(first, second)])[0]
        change()
        assert named_files_changed(tmp_path) != (list_named_files([Named(first, second)])[0] == state)
        assert list_named_files([Named(first, second)])[0] != before


def test_entries_whose_rows_name_no_image_have_no_list(tmp_path: Path) -> None:
    write_named_files(tmp_path, *list_named_files([Named()]))
    assert not (tmp_path / FILE).exists() and not named_files_changed(tmp_path)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """Two images in a list; the second one is missing, and skipped."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    rows = [{"image": f"{name}.png", "label": name} for name in "abc"]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    model: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}
    return recipe_type(CARDS["image_classification"]).model_validate(
        {
            "name": "x",
            "task": "image_classification",
            "model": {"source": "resnet", "init": "config", "config": model},
            "data": {"train": str(tmp_path / "train.jsonl"), "on_bad_row": "skip"},
            "options": {"image_size": 12},
        }
    )


def prepared_images(recipe: Recipe) -> int:
    """Prepare as a training does, and count the images."""
    request = Request.of(recipe)
    folder = find_prepared(request.names()) or prepare(request, request.names(), Stage(1, ProgressLine()))
    return len(load(folder, recipe).datasets["train"])


def test_a_picture_that_was_skipped_is_used_once_it_is_there(recipe: Recipe, tmp_path: Path) -> None:
    assert prepared_images(recipe) == 2
    assert find_prepared(Request.of(recipe).names()) is not None
    Image.new("RGB", (8, 8)).save(tmp_path / "c.png")
    assert prepared_images(recipe) == 3
    (tmp_path / "a.png").write_bytes(b"damaged")
    assert prepared_images(recipe) == 2


def repaint(path: Path) -> None:
    """Another picture in place, of the same size and time."""
    stat = path.stat()
    content = path.read_bytes()
    Image.new("RGB", (8, 8), (9, 9, 9)).save(path, "PNG", compress_level=9)
    path.write_bytes(path.read_bytes()[: len(content)].ljust(len(content), b"\0"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size and path.stat().st_mtime_ns == stat.st_mtime_ns


def test_a_picture_that_is_repainted_in_place_is_prepared_again(recipe: Recipe, tmp_path: Path) -> None:
    assert prepared_images(recipe) == 2
    repaint(tmp_path / "a.png")
    assert find_prepared(Request.of(recipe).names()) is None
    (tmp_path / "folder" / "x").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "folder" / "x" / "0.png")
    data = recipe.data.model_copy(update={"train": (SourceSection(source=str(tmp_path / "folder")),)})
    of_folder = recipe.model_copy(update={"data": data})
    name = Request.of(of_folder).names().new
    repaint(tmp_path / "folder" / "x" / "0.png")
    assert Request.of(of_folder).names().new != name


def test_a_folder_of_classes_is_known_by_its_files(recipe: Recipe, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "folder" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "folder" / name / "0.png")
    data = recipe.data.model_copy(update={"train": (SourceSection(source=str(tmp_path / "folder")),)})
    recipe = recipe.model_copy(update={"data": data})
    names = {Request.of(recipe).names().new}
    assert prepared_images(recipe) == 2
    for extra in ("two/1.heic", "_old/0.png", "one/2.png"):
        (tmp_path / "folder" / extra).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "folder" / extra, "PNG")
        names.add(Request.of(recipe).names().new)
    assert len(names) == 4 and prepared_images(recipe) == 3
