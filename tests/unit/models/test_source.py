"""Tests that the folder of a model is found without importing packages, and that missing ones are reported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from finetune.errors import UserError
from finetune.models.source import resolve_model


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An installed package that fails when it is imported."""
    folder = tmp_path / "carries_weights" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "carries_weights"


def test_a_package_is_found_but_not_imported(package: str, tmp_path: Path) -> None:
    assert resolve_model(f"package:{package}/model") == str((tmp_path / package / "model").resolve())
    assert resolve_model("package:carries-weights/model").endswith("model")
    assert package not in sys.modules


@pytest.mark.parametrize("inside", ["nothing", "../..", ""])
def test_a_wrong_folder_in_a_package_names_the_right_one(package: str, inside: str) -> None:
    if inside == "":
        assert resolve_model(f"package:{package}").endswith(package)
        return
    with pytest.raises(UserError) as caught:
        resolve_model(f"package:{package}/{inside}")
    assert "model" in caught.value.remedy


@pytest.mark.parametrize(
    ("source", "remedy"),
    [
        ("package:no_such_thing/model", "pip install no-such-thing"),
        ("package:a.b/model", "top-level"),
        ("./not/here", "Check the path"),
        ("a/b/c", "Check the path"),
    ],
)
def test_missing_sources_are_reported(source: str, remedy: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve_model(source)
    assert remedy in caught.value.remedy


def test_a_hub_id_is_unchanged_and_a_folder_takes_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_model("owner/name") == "owner/name"
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert Path(resolve_model("owner/name")).is_dir()
    (tmp_path / "file.bin").write_text("")
    with pytest.raises(UserError, match="is a file"):
        resolve_model("file.bin")
