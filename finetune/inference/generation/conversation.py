"""A conversation with a model: its turns, as prompts that fit the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.errors import UserError
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.task import Task
from finetune.tasks.text.row_formats import RowEncoder

NO_LIMIT = 1 << 30


@dataclass(frozen=True)
class Prompt:
    """ids: tokens of the turns that fit. left_out: turns at the beginning that do not. notices: of the template."""

    ids: list[int]
    left_out: int
    notices: tuple[str, ...]


class Conversation:
    """Turns of a user and a model. The model's own template makes the prompt; the system turn is always part of it.

    A model that reads a source and writes a target (seq2seq) knows of no turns: each is asked alone.
    limit: tokens of a prompt; 0: no limit.
    """

    def __init__(self, task: Task, artifacts: TaskArtifacts, system: str, limit: int) -> None:
        """Raises: UserError without a chat template; for a system prompt that the model has no place for."""
        self._task, self._artifacts, self._limit = task, artifacts, limit
        self.remembers = "source" not in task.card.rows.columns
        self._system = system or getattr(artifacts.options, "system", "")
        if self._system and not self.remembers:
            raise UserError(
                f"a model of the task {task.card.name} takes no system prompt",
                where="--system",
                remedy="Leave out --system.",
            )
        if self.remembers and not artifacts.processor.chat_template:
            raise UserError(
                "the model has no chat template, so it knows of no turns",
                where=task.card.name,
                remedy="finetune predict continues texts as they are.",
            )
        self._turns: list[dict[str, str]] = []

    def reset(self) -> None:
        """Forget all turns but the system prompt."""
        self._turns.clear()

    def ask(self, text: str) -> Prompt:
        """The prompt of a new turn of the user, and of as many turns before it as fit, the oldest left out first.

        Raises: BadRow if the turn itself does not fit, or the template refuses it; the conversation stays as it was.
        """
        turns = [*self._turns, {"role": "user", "content": text}] if self.remembers else []
        if not self.remembers:
            prompt = Prompt(*self._checked(self._encode_source(text)))
        else:
            prompt = self._fitting(turns)
        self._turns = turns
        return prompt

    def reply(self, text: str) -> None:
        """The reply of the model to the last turn."""
        if self.remembers:
            self._turns.append({"role": "assistant", "content": text})

    def withdraw(self) -> None:
        """Forget the last turn of the user, which got no reply."""
        if self._turns and self._turns[-1]["role"] == "user":
            self._turns.pop()

    def _fitting(self, turns: list[dict[str, str]]) -> Prompt:
        first = 0
        while True:
            encoded = self._encode(turns[first:])
            rest = [place for place in range(first + 1, len(turns)) if turns[place]["role"] == "user"]
            if not isinstance(encoded, BadRow) and self._fits(encoded["input_ids"]):
                ids, _, notices = self._checked(encoded)
                return Prompt(ids, first, notices)
            if not rest or isinstance(encoded, BadRow):
                self._checked(encoded)
            first = rest[0]

    def _fits(self, ids: Any) -> bool:
        return not self._limit or len(ids) <= self._limit

    def _checked(self, encoded: dict[str, Any] | BadRow) -> tuple[list[int], int, tuple[str, ...]]:
        if isinstance(encoded, BadRow):
            raise encoded
        ids = [int(token) for token in encoded["input_ids"]]
        if not self._fits(ids):
            raise BadRow(f"this turn has {len(ids):,} tokens with the template, and there is room for {self._limit:,}")
        return ids, 0, tuple(encoded.get("notices", ()))

    def _encode(self, turns: list[dict[str, str]]) -> dict[str, Any] | BadRow:
        encoder = RowEncoder(
            self._artifacts.processor,
            form="messages",
            own_template=True,
            system=self._system,
            train_on="reply",
            limit=NO_LIMIT,
            on_long="error",
            tools=self._artifacts.settings.get("tools", ()),
        )
        return encoder.encode([{"messages": turns}], with_targets=False)[0]

    def _encode_source(self, text: str) -> dict[str, Any] | BadRow:
        return self._task.encode(self._artifacts, [{"source": text}], with_targets=False)[0]
