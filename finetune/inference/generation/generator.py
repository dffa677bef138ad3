"""What a text generator is; `continuous.py` and `static.py` are the two."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from finetune.errors import TrainingFailed
from finetune.inference.answering import RowError
from finetune.inference.generation.prompts import PromptRules
from finetune.inference.generation.requests import GenerationSettings, Request


class TextGenerator(Protocol):
    """A language model that answers requests, several at a time, in threads of its own. Close it when done.

    method: continuous batching, or generate. why: it is not continuous batching; "" where it is.
    """

    method: str
    why: str
    rules: PromptRules
    _failed: TrainingFailed | None

    @property
    @abstractmethod
    def slots(self) -> int:
        """Requests that are written at the same time; more of them wait."""

    @property
    def most_tokens(self) -> int:
        """Tokens that a prompt and its reply may have (of an encoder-decoder model, the prompt); 0: no limit."""
        return self.rules.most or self.rules.most_prompt

    def check(self, prompt: Sequence[int]) -> RowError | None:
        """Why the prompt cannot be answered: empty, too_long, or bad_row for ids that the model does not have."""
        return self.rules.check(prompt)

    @abstractmethod
    def submit(
        self,
        prompt: Sequence[int],
        settings: GenerationSettings,
        *,
        row: int = 0,
        streams: bool = False,
        notify: Callable[[Request], None] | None = None,
    ) -> Request:
        """Returns at once. A prompt that `check` objects to comes back as a request that is done, with a RowError.

        Raises: TrainingFailed if the device no longer works. UserError for settings that it cannot follow.
        """

    @abstractmethod
    def cancel(self, request: Request) -> None:
        """End a request with what it has written."""

    def raise_if_broken(self) -> None:
        """Raises: TrainingFailed if the device no longer works."""
        if self._failed is not None:
            raise self._failed

    @abstractmethod
    def exclusively(self) -> AbstractContextManager[None]:
        """A context in which the generator does not compute, so that the caller may use the model."""

    @abstractmethod
    def close(self) -> None:
        """End all requests, stop the threads and leave the model as it was. May be called again."""
