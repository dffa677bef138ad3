"""Read YAML into plain values with their line numbers: safe, without duplicate keys, and `1e-5` is a number.

Values are parsed as in YAML 1.2: `off`, `no` and `2024-01-01` are strings, only true and false are booleans.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import yaml

from finetune.errors import UserError
from finetune.recipe.document import Document
from finetune.recipe.yaml_dialect import loader
from finetune.recipe.yaml_values import ValueBuilder

MAX_FILE_BYTES = 1 << 20  # a recipe is a page; a larger file is a data file given by mistake
MAX_DEPTH = 64  # of sections within sections; parsers that call themselves end the program at some thousands


def read_document(path: Path) -> Document:
    """The YAML file as a Document.

    Raises: UserError, with file and line, for a file that is missing, unreadable, too large or not a YAML mapping.
    """
    name = short_name(path)
    if path.is_dir():
        raise UserError(f"{name} is a folder, not a recipe", remedy="Name a YAML file.")
    document = parse_document(read_text(path), name)
    if not isinstance(document.values, dict):
        found = "empty" if document.values is None else describe_type(document.values)
        raise UserError(
            f"a recipe is a mapping of keys to values, but this file is {found}",
            where=f"{name}:1",
            remedy="`finetune recipes new TASK --output FILE` writes one to start from.",
        )
    return document


def read_text(path: Path) -> str:
    """The text of a recipe. Raises: UserError for a file that is missing, unreadable, too large or not text."""
    name = short_name(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UserError(
                f"{name} is not a regular file but a pipe, a device or a folder",
                remedy="A recipe is read more than once: write it to a file.",
            )
        if status.st_size > MAX_FILE_BYTES:
            raise UserError(f"{name} is too large for a recipe", remedy="Is it a data file? Recipes are YAML files.")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            "the recipe is not UTF-8 text", where=name, remedy=f"Byte {error.start} cannot be read."
        ) from None
    except OSError as error:
        raise UserError(f"cannot read the recipe: {error.strerror}", where=name) from None


def parse_document(text: str, name: str) -> Document:
    """Raises: UserError with name:line for text that is not YAML, or is nested too deeply."""
    try:
        _check_depth(text, name)
        node = yaml.compose(text, Loader=loader())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        if "nesting depth" in (error.problem or ""):  # newer libyaml's own limit, of about a thousand levels
            raise _too_deep(where) from None
        raise UserError(f"not YAML: {_problem(error)}", where=where, remedy=_remedy(error, text, mark)) from None
    except yaml.YAMLError as error:  # a character that YAML forbids
        raise UserError(f"not YAML: {error}".splitlines()[0], where=name) from None
    document = Document(name, None)
    if node is not None:
        document.values = ValueBuilder(document).build(node, ())
    return document


def _check_depth(text: str, name: str) -> None:
    """Composing nodes calls itself for each level: the depth is looked at before, from the events of the parser."""
    depth = 0
    for event in yaml.parse(text, Loader=loader()):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise _too_deep(f"{name}:{event.start_mark.line + 1 if event.start_mark else 1}")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _too_deep(where: str) -> UserError:
    return UserError(f"nested more than {MAX_DEPTH} levels deep", where=where)


def parse_value(text: str) -> Any:
    """The value of `--set key=value`: YAML again, so `3e-5`, `true`, `[a, b]` and `{rank: 4}` all work.

    Raises: ValueError with a one-line reason.
    """
    try:
        document = parse_document(text, "value")
    except UserError as error:
        raise ValueError(error.what.removeprefix("not YAML: ")) from None
    if document.faults:
        raise ValueError(document.faults[0].message)
    return document.values


def short_name(path: Path) -> str:
    """The path relative to the current folder if it is inside it, else absolute."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def describe_type(value: Any) -> str:
    """5 -> "a whole number", [] -> "a list"."""
    names = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        dict: "a mapping",
        list: "a list",
    }
    return "empty" if value is None else names.get(type(value), type(value).__name__)


def _problem(error: yaml.MarkedYAMLError) -> str:
    if _is_second_document(error):
        return "a second document begins"
    problem, context = error.problem or "cannot be parsed", error.context
    return f"{problem} ({context})" if context else problem


def _is_second_document(error: yaml.MarkedYAMLError) -> bool:
    return "expected a single document" in (error.context or "")


def _remedy(error: yaml.MarkedYAMLError, text: str, mark: Any) -> str:
    lines = text.splitlines()
    line = lines[mark.line].rstrip() if mark and mark.line < len(lines) else ""
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return f"{line.strip()}\n  Indent with spaces: YAML takes no tabs."
    if "mapping values are not allowed" in (error.problem or ""):
        return f"{line.strip()}\n  Text that holds `: ` goes in quotes; or is the line before it indented wrongly?"
    if _is_second_document(error):
        return "One file holds one recipe: remove the second `---`."
    return line.strip()
