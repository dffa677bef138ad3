"""Read YAML into plain values with their line numbers: safe, without duplicate keys, and `1e-5` is a number.

Values are parsed as in YAML 1.2: `off`, `no` and `2024-01-01` are strings, only true and false are booleans.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from finetune.errors import Fault, UserError

KeyPath = tuple[str | int, ...]

MAX_FILE_BYTES = 1 << 20  # a recipe is a page; a larger file is a data file given by mistake
KINDS = ("null", "bool", "int", "float", "str", "seq", "map", "merge")
MAX_NODES = 50_000  # aliases of aliases grow without bound
MAX_DEPTH = 64  # of sections within sections; parsers that call themselves end the program at some thousands
MAX_DIGITS = 100  # of a number

_PLAIN = (  # tag, what it looks like, its first characters: YAML 1.2's core schema, and 1_000 besides
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+|0o[0-7]+", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+0123456789."),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
    ("merge", r"<<", "<"),
)


@dataclass
class Document:
    """values: plain dicts, lists and scalars. lines: path of keys -> 1-based line. faults: what is wrong in it."""

    name: str
    values: Any
    lines: dict[KeyPath, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def place(self, path: KeyPath) -> str:
        """The line of the key, or of the nearest section around it: "file.yaml:12"."""
        while path and path not in self.lines:
            path = path[:-1]
        return f"{self.name}:{self.lines.get(path, 1)}"


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
        node = yaml.compose(text, Loader=_loader())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        raise UserError(f"not YAML: {_problem(error)}", where=where, remedy=_remedy(error, text, mark)) from None
    except yaml.YAMLError as error:  # a character that YAML forbids
        raise UserError(f"not YAML: {error}".splitlines()[0], where=name) from None
    document = Document(name, None)
    if node is not None:
        document.values = _Builder(document).build(node, ())
    return document


def _check_depth(text: str, name: str) -> None:
    """Composing nodes calls itself for each level: the depth is looked at before, from the events of the parser."""
    depth = 0
    for event in yaml.parse(text, Loader=_loader()):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise UserError(
                    f"nested more than {MAX_DEPTH} levels deep",
                    where=f"{name}:{event.start_mark.line + 1 if event.start_mark else 1}",
                )
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


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


def dump(values: Any) -> str:
    """Plain values as YAML that reads back as exactly these values."""
    return yaml.dump(values, Dumper=_dumper(), sort_keys=False, allow_unicode=True, width=110)


def one_line(value: Any) -> str:
    """A value as YAML would write it on one line: `[a, b]`, `{rank: 4}`, `''`, `1e-05`, `null`."""
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(one_line, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {one_line(item)}" for key, item in value.items()) + "}"
    return " ".join(dump(value).removesuffix("...\n").split())


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


class _Builder:
    """Nodes -> plain values, noting the line of every key."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.open: set[int] = set()  # nodes being built: an alias to one of them has no end
        self.count = 0

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        self.count += 1
        self.document.lines.setdefault(path, node.start_mark.line + 1)
        if self.count > MAX_NODES:
            where = f"{self.document.name}:{node.start_mark.line + 1}"
            raise UserError(f"more than {MAX_NODES:,} values, with those that aliases repeat", where=where)
        if id(node) in self.open:
            self._fault(node, path, "an alias that holds itself")
            return None
        if node.tag.removeprefix("tag:yaml.org,2002:") not in KINDS:
            self._fault(node, path, f"the tag {node.tag} is not allowed: recipes hold plain values only")
            return None
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                return [self.build(item, (*path, index)) for index, item in enumerate(node.value)]
            return self._scalar(node, path) if isinstance(node, yaml.ScalarNode) else None
        finally:
            self.open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        first_line: dict[str, int] = {}
        for key_node, value_node in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                merged |= self._merge(value_node, path)
                continue
            key = self._key(key_node, path)
            if "\0" in key:
                self._fault(key_node, path, "a key holds the character NUL", show_text(key))
                continue
            line = key_node.start_mark.line + 1
            if key in first_line:
                self._fault(key_node, (*path, key), f"written twice; first on line {first_line[key]}")
                continue
            first_line[key] = line
            self.document.lines[(*path, key)] = line
            values[key] = self.build(value_node, (*path, key))
        return {**merged, **values}

    def _merge(self, node: yaml.Node, path: KeyPath) -> dict[str, Any]:
        """`<<: *base`, or a list of them, of which the first wins."""
        built = self.build(node, path)
        parts = built if isinstance(built, list) else [built]
        if not all(isinstance(part, dict) for part in parts):
            self._fault(node, path, "`<<` takes a mapping or a list of mappings")
            return {}
        return {key: value for part in reversed(parts) for key, value in part.items()}

    def _key(self, node: yaml.Node, path: KeyPath) -> str:
        if isinstance(node, yaml.ScalarNode):
            return str(node.value)  # `1: a` and `true: a` are keys "1" and "true"
        self._fault(node, path, "a key is plain text, not a list or mapping")
        return str(node.start_mark.line)

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        text = node.value
        if "\0" in text:
            self._fault(node, path, "holds the character NUL", show_text(text))
            return None
        if kind in ("int", "float") and len(text) > MAX_DIGITS:
            self._fault(node, path, f"a number of {len(text):,} characters", show_text(text))
            return None
        try:
            if kind == "null":
                return None
            if kind == "bool":
                return {"true": True, "false": False}[text.lower()]
            if kind == "int":
                plain = text.replace("_", "")
                return int(plain, 0) if plain[:2] in ("0x", "0o") else int(plain)
            if kind == "float":
                plain = text.replace("_", "").lower()
                return float(plain.replace(".inf", "inf").replace(".nan", "nan"))
        except (KeyError, ValueError):
            self._fault(node, path, f"not a {kind}", text)
            return None
        return text

    def _fault(self, node: yaml.Node, path: KeyPath, message: str, value: str = "") -> None:
        where = f"{self.document.name}:{node.start_mark.line + 1}"
        self.document.faults.append(Fault(where, dotted(path) or "(file)", message, value))


def show_text(text: str) -> str:
    """The beginning of a long text."""
    return text if len(text) <= MAX_DIGITS else f"{text[:MAX_DIGITS]}..."


def dotted(path: KeyPath) -> str:
    """("data", "train", 0) -> "data.train.0"."""
    return ".".join(map(str, path))


def _resolvers() -> Iterator[tuple[str, re.Pattern[str], list[str]]]:
    for tag, pattern, first in _PLAIN:
        yield f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), ["" if c == "\0" else c for c in first]


@cache
def _loader() -> Any:
    """libyaml's parser where there is one, with our reading of plain words."""
    loader: Any = type(
        "RecipeLoader", (getattr(yaml, "CSafeLoader", yaml.SafeLoader),), {"yaml_implicit_resolvers": {}}
    )
    for tag, pattern, first in _resolvers():
        loader.add_implicit_resolver(tag, pattern, first)
    return loader


@cache
def _dumper() -> Any:
    """Quotes whatever YAML 1.1 or our own reading would take for something else than text."""
    dumper: Any = type("RecipeDumper", (yaml.SafeDumper,), {"ignore_aliases": lambda self, data: True})
    for tag, pattern, first in _resolvers():
        dumper.add_implicit_resolver(tag, pattern, first)
    dumper.add_representer(float, _represent_float)
    return dumper


def _represent_float(dumper: Any, value: float) -> yaml.Node:
    text = repr(value).replace("inf", ".inf").replace("nan", ".nan")
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


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
