"""The recipe as JSON Schema: what editors complete from, and where the words of a fault come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from finetune.recipe.card import TaskCard
from finetune.recipe.recipe import Recipe, recipe_type

Node = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def recipes_schema(cards: Mapping[str, TaskCard]) -> Node:
    """One JSON Schema for the recipes of all tasks: a recipe matches the branch of its `task`."""
    from pydantic.json_schema import models_json_schema

    types = [recipe_type(card) for card in cards.values()]
    references, schema = models_json_schema([(kind, "validation") for kind in types], title="finetune recipe")
    for name, kind in zip(cards, types, strict=True):
        definition = schema["$defs"][references[(kind, "validation")]["$ref"].rsplit("/", 1)[-1]]
        definition["title"] = f"{name} recipe"
        definition["description"] = cards[name].summary
    branches = [references[(kind, "validation")] for kind in types]
    return {
        "$schema": DIALECT,
        "title": "finetune recipe",
        "type": "object",
        "anyOf": branches,
        "$defs": schema["$defs"],
    }


@cache
def schema_of(kind: type[Recipe]) -> Node:
    """JSON Schema of one task's recipe."""
    return kind.model_json_schema(mode="validation")


def nodes_at(schema: Node, path: Sequence[str | int]) -> list[Node]:
    """The schema's plain nodes (no references, no alternatives left) for the value at a path of keys; may be empty."""
    nodes = list(_plain(schema, schema))
    for key in path:
        nodes = [plain for node in nodes for child in _children(node, key) for plain in _plain(schema, child)]
    return nodes


def keys_at(schema: Node, path: Sequence[str | int]) -> list[str]:
    """Keys that the section at `path` may hold."""
    return [key for node in nodes_at(schema, path) for key in node.get("properties", {})]


def description_at(schema: Node, path: Sequence[str | int]) -> str:
    """The `description` of the key at `path`, "" if it has none."""
    for node in nodes_at(schema, path[:-1]):
        found = node.get("properties", {}).get(path[-1], {})
        if isinstance(found, dict) and found.get("description"):
            return str(found["description"])
    return ""


def all_keys(schema: Node) -> list[tuple[str, ...]]:
    """Paths of every key, sections before their keys: ("training",), ("training", "epochs"), ..."""
    return list(_walk(schema, schema, ()))


def describe_allowed(nodes: Sequence[Node]) -> str:
    """What a value may be, in words: "a whole number of at least 1, or auto"."""
    texts: dict[str, None] = {}
    choices: dict[str, None] = {}
    for node in nodes:
        if node.get("deprecated"):  # accepted, but no longer offered
            continue
        if "const" in node or "enum" in node:
            choices |= dict.fromkeys(str(item) for item in node.get("enum", [node.get("const")]))
        else:
            texts[_describe(node)] = None
    parts = [text for text in texts if text]
    if choices:
        parts.append(", ".join(choices))
    return ", or ".join(parts)


def choices_at(nodes: Sequence[Node]) -> list[str]:
    """The fixed words among what is allowed."""
    offered = (node for node in nodes if not node.get("deprecated"))
    return [str(item) for node in offered for item in node.get("enum", [node["const"]] if "const" in node else [])]


def _plain(schema: Node, node: Any) -> Iterator[Node]:
    if not isinstance(node, dict):
        return
    if "$ref" in node:
        yield from _plain(schema, schema["$defs"][node["$ref"].rsplit("/", 1)[-1]])
    elif "anyOf" in node or "oneOf" in node:
        for part in node.get("anyOf") or node.get("oneOf") or ():
            yield from _plain(schema, part)
    else:
        yield node


def _children(node: Node, key: str | int) -> Iterator[Any]:
    if isinstance(key, int):
        prefix = node.get("prefixItems", ())
        if key < len(prefix):
            yield prefix[key]
        elif "items" in node:
            yield node["items"]
    elif key in node.get("properties", {}):
        yield node["properties"][key]
    elif isinstance(node.get("additionalProperties"), dict):
        yield node["additionalProperties"]


def _walk(schema: Node, node: Node, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for plain in _plain(schema, node):
        for key, child in plain.get("properties", {}).items():
            yield (*path, key)
            yield from _walk(schema, child, (*path, key))


def _describe(node: Node) -> str:
    kind = node.get("type")
    if kind in ("integer", "number"):
        return _describe_number("a whole number" if kind == "integer" else "a number", node)
    if kind == "string":
        return str(
            node.get("patternErrorMessage") or (f"text matching {node['pattern']}" if "pattern" in node else "text")
        )
    if kind == "array":
        if "prefixItems" in node:
            return f"a list of {len(node['prefixItems'])} values"
        item = describe_allowed([node["items"]]) if "$ref" not in node.get("items", {"$ref": ""}) else ""
        return f"a list of {item}" if item else "a list"
    if kind == "object":
        keys = ", ".join(node.get("properties", {}))
        return f"a section with the keys {keys}" if keys else "a mapping of names to values"
    return {"boolean": "true or false", "null": "empty"}.get(str(kind), "")


def _figure(number: float) -> str:
    """1000000 -> "1,000,000"; 0.5 -> "0.5"."""
    return f"{int(number):,}" if number == int(number) else f"{number:g}"


def _describe_number(text: str, node: Node) -> str:
    low, high = node.get("minimum"), node.get("maximum")
    above, below = node.get("exclusiveMinimum"), node.get("exclusiveMaximum")
    bounds = [
        f"of at least {_figure(low)}" if low is not None else "",
        f"above {_figure(above)}" if above is not None else "",
        f"of at most {_figure(high)}" if high is not None else "",
        f"below {_figure(below)}" if below is not None else "",
    ]
    return " ".join([text, *(" and ".join(bound for bound in bounds if bound),)]).strip()
