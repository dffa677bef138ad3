"""Proves that CONTRIBUTING.md draws the package as it is: its floors, its folders, and the path of one batch through it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from finetune.tasks import CARDS
from tests.unit.test_floors import FLOORS, PACKAGE

ROOT = PACKAGE.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
STOPS_AT_MOST = 12


def picture_in(text: str) -> tuple[dict[str, int], dict[str, set[str]]]:
    """Room -> floor, and room -> its folders, from lines such as `floor 5   [ app: workers ]   [ other ]`."""
    floors: dict[str, int] = {}
    folders: dict[str, set[str]] = {}
    for number, line in re.findall(r"^floor (\d+) (.*)$", text, re.M):
        for room, inside in re.findall(r"\[ (\w+)(?:: ([^]]+))? \]", line):
            assert room not in floors, f"{room} is drawn twice"
            floors[room] = int(number)
            folders[room] = set(inside.split(", ")) if inside else set()
    return floors, folders


def stops_in(text: str) -> list[tuple[Path, str]]:
    """(file, qualified name) of each row of the table under "The path of one batch"."""
    section = text.partition("### The path of one batch")[2].partition("\n## ")[0]
    return [(ROOT / file, name) for file, name in re.findall(r"^\| `([^`]+\.py)::([\w.]+)` \|", section, re.M)]


def functions_in(path: Path) -> set[str]:
    """Qualified names of the functions and methods of a file: {"train_step", "Loop.run"}."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
    return names


def folders_of(room: str) -> set[str]:
    """Folders with Python files in a room. The folders of tasks are one entry, `<task>`."""
    found = {path.parent.name for path in (PACKAGE / room).glob("*/*.py")}
    return found - set(CARDS) | {"<task>"} if room == "tasks" else found


def test_the_picture_has_every_room_on_its_floor() -> None:
    assert picture_in(TEXT)[0] == FLOORS


def test_the_picture_has_every_folder_of_the_package() -> None:
    floors, folders = picture_in(TEXT)
    rooms = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/*.py")}
    assert set(floors) == rooms
    assert folders == {room: folders_of(room) for room in floors}
    assert sum(map(len, folders.values())) >= 8


def test_each_package_is_described() -> None:
    described = " ".join(re.findall(r"^\| (`[^|]+) \|", TEXT.partition("| package |")[2].partition("\n\n")[0], re.M))
    undescribed = [room for room in FLOORS if f"`{room}/`" not in described and f"`{room}.py`" not in described]
    assert undescribed == ["__init__"]


def test_the_path_of_one_batch_exists() -> None:
    stops = stops_in(TEXT)
    assert 8 <= len(stops) <= STOPS_AT_MOST
    assert len(set(stops)) == len(stops)
    assert [str(path) for path, _ in stops if not path.is_file()] == []
    assert [f"{path.name}::{name}" for path, name in stops if name not in functions_in(path)] == []


@pytest.mark.parametrize(
    ("drawn", "instead"),
    [
        ("[ cli ]", ""),
        ("floor 7   [ cli ]", "floor 6   [ cli ]"),
        ("[ app: preparation, sweeping, workers ]", "[ app: preparation, workers ]"),
    ],
)
def test_a_wrong_picture_is_noticed(drawn: str, instead: str) -> None:
    assert drawn in TEXT
    assert picture_in(TEXT.replace(drawn, instead)) != picture_in(TEXT)


def test_the_path_is_read_row_by_row() -> None:
    rows = "### The path of one batch\n| `a/b.py::C.d` | x |\n| `a/e.py::f` | y |\n\n## Next\n| `a/g.py::h` | z |\n"
    assert stops_in(rows) == [(ROOT / "a/b.py", "C.d"), (ROOT / "a/e.py", "f")]
