"""Proves that a command asks for the place of its result before it works: no folder, pipe or device, nothing below a file, and
no file of somebody else is replaced; an earlier result is.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from finetune.cli.program import app
from finetune.errors import FinetuneError, UserError
from finetune.tracking.atomic_files import PAGE, check_file, check_folder
from tests.e2e import tiny

MINE = "text,label\na film,good\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny.write_data(tmp_path)
    tiny.write_recipe(tmp_path, "recipe.yaml", parallel={"processes": 1, "deepspeed": "none"})
    (tmp_path / "mine").write_text(MINE)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to("no/where")
    return tmp_path


COMMANDS = {
    "inspect": ("inspect", "recipe.yaml", "--html"),
    "compare": ("compare", "run", "run", "--html"),
    "sweep as W&B's": ("sweep", "recipe.yaml", "--grid", "seed=1,2", "--wandb-sweep"),
    "schema": ("recipes", "schema", "--output"),
}


@pytest.mark.parametrize("target", ["mine", "folder", "pipe", "mine/below", "/dev/null", "loop", "recipe.yaml"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_refuses_before_it_works(command: str, target: str, place: Path, capfd) -> None:
    before = (place / "recipe.yaml").read_text()
    result = CliRunner().invoke(app, [*COMMANDS[command], target])
    assert isinstance(result.exception, UserError) and result.exception.where == target
    assert not result.output and capfd.readouterr() == ("", ""), "nothing was announced"
    assert (place / "mine").read_text() == MINE and (place / "recipe.yaml").read_text() == before
    assert (place / "pipe").is_fifo() and Path("/dev/null").is_char_device()


@pytest.mark.parametrize("target", ["mine", "mine/below", "pipe", "/dev/null", "loop"])
def test_a_sweep_announces_nothing_where_it_cannot_be(target: str, place: Path, capfd) -> None:
    result = CliRunner().invoke(app, ["sweep", "recipe.yaml", "--grid", "seed=1,2", "--sweep-dir", target])
    assert isinstance(result.exception, FinetuneError) and target in result.exception.where
    assert "starting" not in result.output + capfd.readouterr().out


def test_a_training_below_a_file_prepares_nothing(place: Path, capfd) -> None:
    result = CliRunner().invoke(app, ["train", "recipe.yaml", "--run-dir", "mine/below"])
    assert isinstance(result.exception, UserError) and "mine is not a folder" in result.exception.what
    assert "preparing" not in result.output + "".join(capfd.readouterr())


def test_an_earlier_result_is_replaced(place: Path) -> None:
    for command in ("sweep as W&B's", "schema"):
        for _ in range(2):
            result = CliRunner().invoke(app, [*COMMANDS[command], f"new {command}"])
            assert result.exit_code == 0, result.output
    (place / "page.html").write_text("\n<!doctype html>\n<html>")
    (place / "empty").touch()
    for name in ("page.html", "empty", "none yet", "new/folder/page.html", "gone"):
        check_file(place / name, PAGE)
    for name in ("folder", "new", "gone", "new/of/new"):
        check_folder(place / name, "")
