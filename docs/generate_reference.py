"""Writes docs/reference/{recipe,cli}.md from the recipe's schema and the command line, so that neither can go stale.

    python docs/generate_reference.py            # writes both
    python docs/generate_reference.py --check    # exit code 1 if one of them is not what would be written

Needs neither torch nor transformers: a second at most.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import typer  # noqa: E402
from pydantic.fields import FieldInfo  # noqa: E402
from pydantic_core import PydanticUndefined  # noqa: E402

from finetune.cli import app  # noqa: E402
from finetune.metrics.catalogue import CATALOGUE  # noqa: E402
from finetune.recipe.card import TaskCard  # noqa: E402
from finetune.recipe.recipe import Recipe, recipe_type  # noqa: E402
from finetune.recipe.schema import describe_allowed, description_at, nodes_at, schema_of  # noqa: E402
from finetune.recipe.section import Section  # noqa: E402
from finetune.recipe.yaml import one_line  # noqa: E402
from finetune.tasks import CARDS  # noqa: E402

REFERENCE = ROOT / "docs" / "reference"
NOTE = "<!-- Written by docs/generate_reference.py. Do not edit: change the code, then run it again. -->\n"


def pages() -> dict[str, str]:
    """File name -> text of every generated page."""
    return {"recipe.md": recipe_page(), "cli.md": cli_page()}


def recipe_page() -> str:
    """Every key of a recipe by section, then the options and columns of each task."""
    card = next(iter(CARDS.values()))
    lines = [NOTE, "# Recipe keys", ""]
    lines += [
        "Every key, its default, and what it may be. `finetune recipes show RECIPE --explain` shows the value that each "
        "of them has in a recipe, and where it came from. Numbers may be written as `1e-4`.",
        "",
        *_section_lines("", Recipe, recipe_type(card)),
    ]
    for name, task in CARDS.items():
        lines += ["", f"## Task `{name}`", "", task.summary, "", *_task_lines(task)]
    return "\n".join(lines) + "\n"


def _section_lines(prefix: str, section: type[Section], root: type[Recipe]) -> Iterator[str]:
    """A table of the plain keys of a section, then the sections inside it."""
    inner = {name: _section_of(info) for name, info in section.model_fields.items() if name != "options"}
    plain = [name for name, found in inner.items() if found is None]
    if prefix:
        yield from ("", f"## `{prefix}`", "")
        yield from (_about(prefix, root), "")
    yield from _key_table(prefix, section, plain, root)
    for name, found in inner.items():
        if found is not None and f"{prefix}.{name}" not in ("data.validation", "data.test"):  # written as data.train is
            yield from _section_lines(f"{prefix}.{name}" if prefix else name, found, root)


def _key_table(prefix: str, section: type[Section], names: list[str], root: type[Recipe]) -> Iterator[str]:
    yield from ("| key | default | may be | meaning |", "|---|---|---|---|")
    for name in names:
        info = section.model_fields[name]
        path = [*prefix.split("."), name] if prefix else [name]
        allowed = ", ".join(CARDS) if path == ["task"] else describe_allowed(nodes_at(schema_of(root), _steps(path)))
        yield f"| `{name}` | {_default(info)} | {_cell(allowed)} | {_cell(info.description or '')} |"


def _task_lines(card: TaskCard) -> Iterator[str]:
    kind = recipe_type(card)
    yield from (
        "Columns (`data.columns` maps a role to a column of the data):",
        "",
        "| role | needed | what it holds |",
    )
    yield "|---|---|---|"
    for role, meaning in card.columns.items():
        groups = [group for group in card.required if role in group]
        alone = any(len(group) == 1 for group in groups)
        needed = "yes" if alone else f"one of {', '.join(f'`{other}`' for other in groups[0])}" if groups else ""
        yield f"| `{role}` | {needed} | {_cell(meaning)} |"
    if card.options.model_fields:
        yield from ("", "Options (`options:` of a recipe):", "")
        yield from _key_table("options", card.options, list(card.options.model_fields), kind)
    chosen = ", ".join(f"`{name}`{_way(name)}" for name in card.metrics)
    yield from ("", f"Metrics: {chosen}.", "")
    yield f"By default: {', '.join(f'`{name}`' for name in card.default_metrics)}; best: `{card.best}`."
    yield f"Unit of loss: {card.unit}. Micro-batch where the recipe says `auto`: {card.micro_batch}."
    yield f"Packing: `{card.packing}` where the recipe says `auto`, of {', '.join(f'`{p}`' for p in card.packings)}."


def _way(metric: str) -> str:
    return " (a table)" if CATALOGUE[metric].direction is None else ""


def _section_of(info: FieldInfo) -> type[Section] | None:
    """The section that a field holds, alone, optional or in a tuple; None for a plain value."""
    waiting: list[Any] = [info.annotation]
    while waiting:
        annotation = waiting.pop()
        if isinstance(annotation, type) and issubclass(annotation, Section):
            return annotation
        waiting.extend(get_args(annotation))
    return None


def _steps(path: list[str]) -> list[str | int]:
    """Into the schema: data.train.source is data.train[0].source."""
    if path[:2] == ["data", "train"] and len(path) > 2:
        return [*path[:2], 0, *path[2:]]
    return list(path)


def _about(prefix: str, root: type[Recipe]) -> str:
    """The section's own description; sources are the same for all splits."""
    text = description_at(schema_of(root), _steps(prefix.split(".")))
    if prefix == "data.train":
        text += " `data.validation` and `data.test` are written in the same way. A source's name alone is enough."
    return text


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "**needed**"
    value = info.get_default(call_default_factory=True)
    if value is PydanticUndefined or value is None:
        return ""
    return f"`{one_line(list(value) if isinstance(value, tuple) else value)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def cli_page() -> str:
    """Every command with its help, as `finetune COMMAND --help` prints it."""
    lines = [NOTE, "# Command line", ""]
    for context in _contexts(typer.main.get_command(app), "finetune", None):
        help_text = (line.rstrip() for line in context.get_help().rstrip().splitlines())
        lines += [f"## `{context.command_path}`", "", "```text", *help_text, "```", ""]
    return "\n".join(lines)


def _contexts(command: Any, name: str, parent: Any) -> Iterator[Any]:
    """The context of a command and of all commands below it: 100 columns wide, whatever the terminal."""
    settings = {**command.context_settings, "terminal_width": 100, "max_content_width": 100}
    context = command.context_class(command, info_name=name, parent=parent, **settings)
    yield context
    for child, below in getattr(command, "commands", {}).items():
        yield from _contexts(below, child, context)


def main() -> int:
    """Exit code 0, or 1 if --check finds a page that is not what would be written."""
    parser = argparse.ArgumentParser(description="Write docs/reference/ from the schema and the command line.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is out of date")
    check = parser.parse_args().check
    stale = []
    for name, text in pages().items():
        path = REFERENCE / name
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    if check and stale:
        print(f"out of date: {', '.join(stale)}; run: python docs/generate_reference.py")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
