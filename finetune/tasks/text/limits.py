"""The tokens that a sequence may have, and which setting says so: it is named where a row is cut or refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.tasks.artifacts import TaskArtifacts

OPTION = "options.max_length"
SOURCE_OPTION = "options.max_source_length"
KEY = "limited_by"  # of the artifacts' settings, beside max_length


class Limit(int):
    """Tokens, with the name of what sets the limit: an option, or a setting of the model, its tokenizer or the data."""

    def __new__(cls, tokens: int, name: str = OPTION) -> Limit:
        """name: as a message says it, such as data.capacity."""
        made = super().__new__(cls, tokens)
        made.name = name
        return made

    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """What artifacts keep of it."""
        return {"max_length": int(self), KEY: self.name}


def limit_of(artifacts: TaskArtifacts) -> Limit:
    """The artifacts' limit. Those of older versions do not say what sets it."""
    settings = artifacts.settings
    return Limit(settings["max_length"], settings.get(KEY, OPTION))


def limit_name(limit: int) -> str:
    """The name of what sets it."""
    return limit.name if isinstance(limit, Limit) else OPTION
