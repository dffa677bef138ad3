"""Paths that users name: ~ is the home folder; what no file can be called is the user's error, never a bug."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from finetune.cli import main
from finetune.data.image_values import resolve_image
from finetune.errors import UserError
from finetune.models.config import load_config
from finetune.recipe.model import ModelSection
from finetune.recipe.user_path import near_path, user_path

PACKAGE = Path(__file__).parents[3] / "finetune"
NOBODY = "~no-such-user/x"


def test_home_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    assert user_path("~/a.csv") == Path("/home/me/a.csv")
    assert user_path("a/~b") == Path("a/~b")
    assert user_path(Path("~")) == Path("/home/me")
    (tmp_path / "~draft.csv").touch()
    assert user_path("~draft.csv") == Path("~draft.csv")


@pytest.mark.parametrize(
    ("named", "told"),
    [(NOBODY, "there is no user 'no-such-user'"), ("a\0b", "null"), ("x" * 300, "300 bytes"), ("a/" * 3000, "6,000")],
)
def test_what_no_file_can_be_called(named: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        user_path(named)


COMMANDS = (
    *(["evaluate", NOBODY], ["export", NOBODY, "-o", "x"], ["report", NOBODY], ["logs", NOBODY], ["runs", NOBODY]),
    *(["compare", NOBODY, NOBODY], ["dashboard", NOBODY], ["train", NOBODY], ["inspect", NOBODY], ["chat", NOBODY]),
    *(["predict", NOBODY, "--data", "x", "-o", "x.jsonl"], ["predict", "x", "--data", "x", "-o", NOBODY]),
    *(["recipes", "new", "causal_lm", "--data", NOBODY], ["recipes", "show", NOBODY], ["prepare", NOBODY]),
    *(["train", "quickstart", "--run-dir", NOBODY], ["recipes", "schema", "-o", NOBODY], ["verify", NOBODY]),
    *(
        ["sweep", "quickstart", "--grid", "seed=1,2", "--sweep-dir", NOBODY],
        ["predict", "x", "-o", "x", "--draw", NOBODY],
    ),
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_says_so(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(command)
    said = capsys.readouterr().err
    assert ended.value.code == 2, said
    assert "no user 'no-such-user'" in said or "no recipe" in said, said


def test_paths_are_expanded_at_this_door_alone() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 300
    for file in files:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr == "expanduser":
                is_of_os = isinstance(node.value, ast.Attribute) and node.value.attr == "path"
                assert is_of_os, f"{file}:{node.lineno}: Path.expanduser raises RuntimeError; use user_path"


def test_an_image_of_a_row_in_a_home_folder_of_nobody_is_a_file_that_is_not_there() -> None:
    assert resolve_image(f"{NOBODY}.png", Path("/data")) == f"/data/{NOBODY}.png"


def test_every_path_of_the_command_line_passes_it() -> None:
    """Annotated[Path, typer.Option(..., parser=user_path)], in every file of the command line."""
    seen = 0
    for file in sorted((PACKAGE / "cli").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if not (isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Annotated"):
                continue
            kind, declared = node.slice.elts  # type: ignore[attr-defined]
            if "Path" in ast.unparse(kind):
                seen += 1
                assert "parser=user_path" in ast.unparse(declared), f"{file}:{node.lineno}: add parser=user_path"
    assert seen >= 16


def test_a_name_that_a_file_resembles_is_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "chat.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    assert near_path("chat.jsnl") == "Did you mean chat.jsonl? "
    assert near_path("run/modell") == "Did you mean run/model? "
    for other in ("owner/set", "chat.jsonl", "squad", "", "/", "a" * 300):
        assert near_path(other) == "", other
    model = ModelSection(source="run/modell")
    with pytest.raises(UserError) as refused:
        load_config(model)
    assert refused.value.remedy.startswith("Did you mean run/model? ")
