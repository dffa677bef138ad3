"""Nodes of a YAML document as plain values: no tags, no duplicate keys, no endless aliases; each key with its line."""

from __future__ import annotations

from typing import Any

import yaml

from finetune.errors import Fault, UserError
from finetune.recipe.document import Document, KeyPath, dotted

KINDS = ("null", "bool", "int", "float", "str", "seq", "map", "merge")
MAX_NODES = 50_000  # aliases of aliases grow without bound
MAX_DIGITS = 100  # of a number


class ValueBuilder:
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
