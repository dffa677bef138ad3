"""What a check reads: a valid recipe, its task's card, and where each value was written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from finetune.errors import Fault
from finetune.recipe.card import TaskCard
from finetune.recipe.document import KeyPath
from finetune.recipe.draft import Draft
from finetune.recipe.faults import show_value
from finetune.recipe.recipe import Recipe


@dataclass(frozen=True)
class CheckContext:
    """A recipe whose values are valid, its task, and the draft, which knows where each value was written."""

    recipe: Recipe
    card: TaskCard
    draft: Draft

    def fault(
        self, key: str | KeyPath, message: str, *, allowed: str = "", near: str = "", on: tuple[str, ...] = ()
    ) -> Fault:
        """A fault at a key, with its value. on: other keys that it rests on."""
        path: KeyPath = tuple(key.split(".")) if isinstance(key, str) else key
        written = self.draft.get(path)
        value = "" if written is None else show_value(written, str(path[-1]))
        return Fault(self.draft.place(path), self.draft.shown(path), message, value, allowed, near, on)


Check = Callable[[CheckContext], Iterator[Fault]]
