"""Proves that shipped recipes and DeepSpeed configurations are found by name, and that a miss names the nearest."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.errors import UserError
from finetune.recipe import shelf


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with two shelves of its own."""
    monkeypatch.setattr(shelf, "_PACKAGE", tmp_path / "finetune")
    shelf.shelf_folder.cache_clear()
    recipes = tmp_path / "recipes"
    (recipes / "sorting").mkdir(parents=True)
    (recipes / "quickstart.yaml").write_text(
        "# yaml-language-server: $schema=x\n# The first one.\ntask: sorting  # yes\n"
    )
    (recipes / "sorting" / "small-set.yaml").write_text("task: sorting\n")
    (tmp_path / "ds_configs").mkdir()
    (tmp_path / "ds_configs" / "zero2.json").write_text("{}")
    yield tmp_path
    shelf.shelf_folder.cache_clear()


def test_the_list_names_all_and_reads_their_first_comment(shipped: Path) -> None:
    found = shelf.list_recipes()
    assert [recipe.name for recipe in found] == ["quickstart", "sorting/small-set"]
    assert (found[0].task, found[0].summary) == ("sorting", "The first one.")


@pytest.mark.parametrize(
    "name", ["sorting/small-set", "small-set", "sorting/small-set.yaml", "recipes/sorting/small-set.yaml"]
)
def test_recipes_are_found_by_name(shipped: Path, name: str) -> None:
    assert shelf.find_recipe(name) == shipped / "recipes" / "sorting" / "small-set.yaml"


def test_a_file_goes_before_a_name(shipped: Path, monkeypatch) -> None:
    monkeypatch.chdir(shipped)
    (shipped / "quickstart.yaml").write_text("task: mine\n")
    assert shelf.find_recipe("quickstart.yaml") == Path("quickstart.yaml")


@pytest.mark.parametrize(
    ("name", "near"), [("quikstart", "quickstart"), ("smal-set", "sorting/small-set"), ("zzz", "finetune recipes list")]
)
def test_a_miss_names_the_nearest(shipped: Path, name: str, near: str) -> None:
    with pytest.raises(UserError) as caught:
        shelf.find_recipe(name)
    assert near in caught.value.remedy


def test_deepspeed_configurations(shipped: Path) -> None:
    assert shelf.list_deepspeed_configs() == ["zero2"]
    assert shelf.find_deepspeed_config("zero2") == shelf.find_deepspeed_config("zero2.json")
    own = shipped / "own.json"
    own.write_text("{}")
    assert shelf.find_deepspeed_config(str(own)) == own
    with pytest.raises(UserError, match="no DeepSpeed configuration zero"):
        shelf.find_deepspeed_config("zero")
    with pytest.raises(UserError, match="absent"):
        shelf.find_deepspeed_config(str(shipped / "absent.json"))


def test_an_installed_package_has_its_shelves_inside(shipped: Path) -> None:
    inside = shipped / "finetune" / "shipped" / "recipes"
    inside.mkdir(parents=True)
    (inside / "installed.yaml").write_text("task: x\n")
    shelf.shelf_folder.cache_clear()
    assert [recipe.name for recipe in shelf.list_recipes()] == ["installed"]


def test_the_checkout_ships_both_shelves() -> None:
    assert "zero2" in shelf.list_deepspeed_configs()
    assert shelf.shelf_folder("recipes").is_dir()
