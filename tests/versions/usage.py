"""What `finetune` uses of its libraries, read from its syntax trees: dotted names and the keyword arguments of calls.

    from torch.nn.functional import scaled_dot_product_attention as attend
    attend(query, key, value, is_causal=True)

gives {"torch.nn.functional.scaled_dot_product_attention": {"is_causal"}}. Methods of objects have no dotted name in a
syntax tree; tests/versions/methods.py lists those by hand.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "finetune"
LIBRARIES = ("torch", "transformers", "accelerate", "peft", "deepspeed")


def used_names(package: Path = PACKAGE) -> dict[str, set[str]]:
    """Dotted name -> keywords that some call passes to it; an empty set for names that are not called with any."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted(package.rglob("*.py")):
        collector = _Collector()
        collector.visit(ast.parse(path.read_text("utf-8")))
        for name, keywords in collector.found.items():
            found[name] |= keywords
    return dict(sorted(found.items()))


class _Collector(ast.NodeVisitor):
    def __init__(self) -> None:
        self.found: dict[str, set[str]] = defaultdict(set)
        self._aliases: dict[str, str] = {}  # local name -> dotted name

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if _is_ours(alias.name):
                root = alias.name.split(".")[0]
                self._aliases[alias.asname or root] = alias.name if alias.asname else root
                self.found[alias.name] |= set()

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.level or not node.module or not _is_ours(node.module):
            return
        for alias in node.names:
            name = f"{node.module}.{alias.name}"
            self._aliases[alias.asname or alias.name] = name
            self.found[name] |= set()

    def visit_Call(self, node: ast.Call) -> None:
        name = self._dotted(node.func)
        if name:
            self.found[name] |= {keyword.arg for keyword in node.keywords if keyword.arg}
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        name = self._dotted(node)
        if name:
            self.found[name] |= set()
            return  # its prefixes are covered by it
        self.generic_visit(node)

    def _dotted(self, node: ast.expr) -> str:
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name) or node.id not in self._aliases:
            return ""
        return ".".join([self._aliases[node.id], *reversed(parts)])


def _is_ours(module: str) -> bool:
    return module.split(".")[0] in LIBRARIES
