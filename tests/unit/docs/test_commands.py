"""Proves that the commands of the pages are ones that finetune takes: verbs, options, shipped recipes and keys of recipes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from finetune import cli
from finetune.app.recipes import resolve_recipe
from finetune.recipe import shelf

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "recipes").rglob("README.md")])
ENDS = {"<", "|", ">", "&&", ";"}


def _commands(page: Path) -> Iterator[list[str]]:
    """The arguments of each `finetune` in the blocks of a page, launchers' `-m finetune` and `--module finetune` among them."""
    for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.S | re.M):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.replace(";", " ; "), comments=True)
            while "finetune" in words:
                words = words[words.index("finetune") + 1 :]
                end = next((place for place, word in enumerate(words) if word in ENDS), len(words))
                yield words[:end]


COMMANDS = [(page, words) for page in PAGES for words in _commands(page)]


@pytest.mark.parametrize(
    ("page", "words"), COMMANDS, ids=[f"{page.relative_to(ROOT)}: {' '.join(words)}" for page, words in COMMANDS]
)
def test_a_command_of_a_page_is_taken(page: Path, words: list[str], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    command, rest = typer.main.get_command(cli.app), list(words)
    while hasattr(command, "commands") and rest:
        command = command.commands[rest.pop(0)]
    context = command.make_context(words[0], rest)  # its types and required arguments, too
    name, sets = str(context.params.get("recipe") or ""), list(context.params.get("sets") or ())
    if name and not name.endswith(".yaml"):
        assert shelf.find_recipe(name).is_file()
    if sets:
        resolve_recipe(name if name and not name.endswith(".yaml") else "quickstart", sets)


def test_there_are_commands_to_look_at() -> None:
    assert len(COMMANDS) > 80, len(COMMANDS)
