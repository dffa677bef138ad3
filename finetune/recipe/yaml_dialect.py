"""How plain words of YAML are read and written: as in YAML 1.2, and `1e-5` is a number."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import yaml

_PLAIN = (  # tag, what it looks like, its first characters: YAML 1.2's core schema, and 1_000 besides
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+|0o[0-7]+", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+0123456789."),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
    ("merge", r"<<", "<"),
)


def _resolvers() -> Iterator[tuple[str, re.Pattern[str], list[str]]]:
    for tag, pattern, first in _PLAIN:
        yield f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), ["" if c == "\0" else c for c in first]


@cache
def loader() -> Any:
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
