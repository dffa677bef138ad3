"""Proves that the committed reference is what the schema and the command line say today, and that pages name real files."""

from __future__ import annotations

import importlib.util
import re
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

from finetune.metrics.catalogue import NAMES
from finetune.tasks import CARDS

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "recipes").rglob("README.md")])
AGAIN = "run: python docs/generate_reference.py"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_reference", ROOT / "docs" / "generate_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_recipe_reference_is_current(generator: ModuleType) -> None:
    assert (ROOT / "docs/reference/recipe.md").read_text(encoding="utf-8") == generator.recipe_page(), AGAIN


def test_the_command_line_reference_is_current(generator: ModuleType) -> None:
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M))
    if metadata.version("typer") != pinned["typer"]:
        pytest.skip(f"typer {pinned['typer']} laid the page out, here is {metadata.version('typer')}")
    assert (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8") == generator.cli_page(), AGAIN


def test_every_key_and_every_task_is_in_the_reference(generator: ModuleType) -> None:
    from finetune.recipe.recipe import recipe_type
    from finetune.recipe.schema import all_keys, schema_of

    text = generator.recipe_page()
    for name, card in CARDS.items():
        assert f"## Task `{name}`" in text
        for path in set(all_keys(schema_of(recipe_type(card)))) - {("options",)}:  # a section by task, below
            assert f"`{path[-1]}`" in text or f"`{'.'.join(path)}`" in text, path


def test_every_task_and_every_metric_has_its_words() -> None:
    tasks, metrics = ((ROOT / f"docs/{name}.md").read_text(encoding="utf-8") for name in ("tasks", "metrics"))
    assert [name for name in CARDS if f"## `{name}`" not in tasks] == []
    assert [name for name in NAMES if f"`{name}`" not in metrics] == []


def _prose(page: Path) -> str:
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)


def _anchors(page: Path) -> set[str]:
    """Of the headings of a page, as GitHub and MkDocs name them."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.+)$", _prose(page), re.M):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        found[f"{name}-{found[name]}" if name in found else name] = 1
    return set(found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", _prose(page)):
        if not re.match(r"[a-z]+:", target):
            there = (page.parent / target) if target else page
            assert there.exists(), f"{page.name} names {target}"
            if anchor and there.suffix == ".md":
                assert anchor in _anchors(there), f"{page.name} names {target}#{anchor}"


def test_there_are_pages_to_look_at() -> None:
    assert len(PAGES) >= 20, [str(page) for page in PAGES]
