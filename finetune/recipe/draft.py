"""A recipe before validation: plain values, where each was written, and the `--set` overrides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune.errors import Fault
from finetune.recipe.document import Document, KeyPath, dotted
from finetune.recipe.yaml import MAX_DEPTH, describe_type, parse_value
from finetune.recipe.yaml_dialect import one_line

SPLITS = ("train", "validation", "test")
DEFAULT_EPOCHS = 3
DERIVED = "derived: "  # prefix of the origin of a value that follows from others


# Keys of which a recipe has one.
ALTERNATIVES: tuple[tuple[KeyPath, KeyPath], ...] = (
    (("training", "epochs"), ("training", "steps")),
    (("data", "validation"), ("data", "validation_fraction")),
)
UNSET: dict[KeyPath, Any] = {("data", "validation"): [], ("data", "validation_fraction"): 0.0}  # others: None


class Draft:
    """values: nested dicts and lists. A path is a tuple of keys; sources of data are always lists of mappings."""

    def __init__(self, document: Document) -> None:
        self.values: dict[str, Any] = document.values
        self.name = document.name
        self.faults = list(document.faults)
        self.notes: list[str] = []  # what an override changed besides its own key
        self._origins: dict[KeyPath, str] = {path: document.place(path) for path in document.lines}
        self._alone: set[KeyPath] = set()  # splits that were written as one source, not as a list
        self._list_sources()

    def place(self, path: KeyPath) -> str:
        """Where the key, or the nearest section around it, was written: "file.yaml:12" or "--set training.epochs"."""
        while path and path not in self._origins:
            path = path[:-1]
        return self._origins.get(path, f"{self.name}:1")

    def origin(self, path: KeyPath) -> str:
        """Like `place`, but "default" for a value that is not written anywhere."""
        return self.place(path) if self.has(path) else "default"

    def is_written(self, path: KeyPath) -> bool:
        """Whether the value at `path` was written in the file or an override, rather than derived."""
        return bool(self.get(path)) and not self.place(path).startswith(DERIVED)

    def shown(self, path: KeyPath) -> str:
        """The dotted key as the user wrote it: data.train.limit where train is one source rather than a list."""
        if len(path) > 2 and path[:2] in self._alone:
            path = (*path[:2], *path[3:])
        return dotted(path)

    def written(self) -> tuple[dict[str, str], dict[str, str]]:
        """Of each key and section that is written in the file or an override: where; and as the user wrote it, if unlike
        its dotted path. The name of the recipe's file is at "".
        """
        places = {dotted(path): where for path, where in self._origins.items() if not where.startswith(DERIVED)}
        alone = {dotted((*path, 0)): dotted(path) for path in self._alone}
        return {"": f"{self.name}:1", **places}, alone

    def has(self, path: KeyPath) -> bool:
        """Is there a value at `path`?"""
        value: Any = self.values
        key: Any
        for key in path:
            if not (isinstance(value, dict) and key in value) and not (
                isinstance(value, list) and isinstance(key, int) and key < len(value)
            ):
                return False
            value = value[key]
        return True

    def get(self, path: KeyPath, default: Any = None) -> Any:
        """The value at `path`."""
        if not self.has(path):
            return default
        value: Any = self.values
        key: Any
        for key in path:
            value = value[key]
        return value

    def put(self, path: KeyPath, value: Any, origin: str) -> None:
        """Write a value; missing or empty sections on the way are created.

        Raises: LookupError with a reason if something on the way is neither a section nor a list.
        """
        inner: Any = self.values
        for depth, key in enumerate(path):
            if not isinstance(inner, (dict, list)):
                raise LookupError(f"{dotted(path[:depth])} is {describe_type(inner)}, not a section")
            if isinstance(inner, list) and not (isinstance(key, int) and key < len(inner)):
                raise LookupError(f"{dotted(path[:depth])} is a list, which has no {key}")
            if depth == len(path) - 1:
                inner[key] = value  # type: ignore[index]
            elif isinstance(inner, dict) and inner.get(key) is None:
                inner[key] = {}
                self._origins.setdefault(path[: depth + 1], origin)
            inner = inner[key]  # type: ignore[index]
        for known in [known for known in self._origins if known[: len(path)] == path]:
            del self._origins[known]
        self._origins[path] = origin

    def override(self, sets: Sequence[str]) -> None:
        """Apply `--set a.b=value` in order; an override that cannot be applied becomes a fault."""
        for text in sets:
            key, equals, raw = text.partition("=")
            key = key.strip().removeprefix("--set ")
            where = f"--set {key}"
            try:
                if key.count(".") >= MAX_DEPTH:
                    raise LookupError(f"a key of more than {MAX_DEPTH} parts")
                if not equals or not key:
                    raise LookupError("takes KEY=VALUE, such as training.epochs=3")
                self.put(self._find(key), parse_value(raw), where)
            except (LookupError, ValueError) as error:
                reason = error.args[0] if isinstance(error, LookupError) else f"not a YAML value: {error}; quote it"
                self.faults.append(Fault(where, key or text, reason, raw.strip()))
            self._list_sources()
        for given, other in (*ALTERNATIVES, *(pair[::-1] for pair in ALTERNATIVES)):
            self._leave_out(other, given)

    def _leave_out(self, path: KeyPath, given: KeyPath) -> None:
        """Unset a value of the file whose alternative is overridden: the override means to take its place."""
        place, override = self.place(path), f"--set {dotted(given)}"
        if not self.get(path) or not self.get(given) or self.place(given) != override or place.startswith("--set"):
            return
        self.notes.append(f"{override} takes the place of {dotted(path)}: {one_line(self.get(path))} ({place})")
        self.put(path, UNSET.get(path), override)

    def fill_empty_sections(self, sections: Sequence[KeyPath]) -> None:
        """An empty section (`training:`) means its defaults."""
        for path in sections:
            if self.has(path) and self.get(path) is None:
                self.get(path[:-1])[path[-1]] = {}

    def _find(self, key: str) -> KeyPath:
        """The path of a dotted key; data.train.limit reaches into the only source, as data.train.0.limit does."""
        path: list[str | int] = []
        inner: Any = self.values
        for part in key.split("."):
            step: str | int = part
            if isinstance(inner, list):
                if part.isascii() and part.isdigit() and len(part) < 10:
                    step = int(part)
                    if step >= len(inner):
                        raise LookupError(f"{dotted(tuple(path))} has {len(inner)} items, 0 to {len(inner) - 1}")
                elif len(inner) == 1 and isinstance(inner[0], dict):
                    path.append(0)
                    inner = inner[0]
                else:
                    raise LookupError(f"{dotted(tuple(path))} is a list: name one item, {dotted(tuple(path))}.0.{part}")
            path.append(step)
            inner = (
                inner[int(step)] if isinstance(inner, list) else inner.get(step) if isinstance(inner, dict) else None
            )
        return tuple(path)

    def _list_sources(self) -> None:
        """`train: a.jsonl` and `train: {source: a.jsonl}` become [{source: a.jsonl}], their origins with them."""
        data = self.values.get("data")
        if not isinstance(data, dict):
            return
        for split in SPLITS:
            value, path = data.get(split), ("data", split)
            if isinstance(value, dict):
                moved = {known: where for known, where in self._origins.items() if known[:2] == path and len(known) > 2}
                for known, where in moved.items():
                    del self._origins[known]
                    self._origins[(*path, 0, *known[2:])] = where
            if isinstance(value, (str, dict)):
                self._alone.add(path)
                data[split] = value = [value]
            if isinstance(value, list):
                data[split] = [{"source": item} if isinstance(item, str) else item for item in value]
                if len(value) != 1:
                    self._alone.discard(path)
