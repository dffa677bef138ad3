"""What a model can be asked: checks of prompts before the model sees them, and tokens that end a reply."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.inference.answering import RowError
from finetune.inference.generation.requests import GenerationSettings, Request
from finetune.inference.generation.text_stream import TextStream


@dataclass(frozen=True)
class PromptRules:
    """vocabulary: rows of the model's embedding. most: tokens of prompt and reply together; 0: no limit of both together.

    most_prompt, most_reply: of one alone; 0: no limit. stop_tokens: ids that end every reply.
    """

    tokenizer: Any
    vocabulary: int
    stop_tokens: frozenset[int]
    most: int = 0
    most_prompt: int = 0
    most_reply: int = 0
    limited_by: str = "the model's length"

    def check(self, prompt: Sequence[int]) -> RowError | None:
        """See TextGenerator.check."""
        count = len(prompt)
        if not count:
            return RowError("empty", "the prompt has no tokens")
        if self.most and count >= self.most:
            return RowError(
                "too_long", f"the prompt has {count:,} tokens, and {self.limited_by} is {self.most:,} with the reply"
            )
        if self.most_prompt and count > self.most_prompt:
            return RowError("too_long", f"the prompt has {count:,} tokens, more than the model's {self.most_prompt:,}")
        ids = np.asarray(prompt)
        wrong = ids[(ids < 0) | (ids >= self.vocabulary)]
        if wrong.size:
            return RowError(
                "bad_row", f"the prompt has token {int(wrong[0])}, and the model knows 0 to {self.vocabulary - 1}"
            )
        return None

    def request(
        self,
        prompt: Sequence[int],
        settings: GenerationSettings,
        row: int,
        streams: bool,
        notify: Callable[[Request], None] | None,
    ) -> Request:
        """A request with the tokens that it may write; done, with a RowError, where `check` objects to its prompt."""
        ids = [int(token) for token in prompt]
        limits = (settings.new_tokens, self.most and self.most - len(ids), self.most_reply)
        special = special_stops(self.tokenizer, settings.stops)
        request = Request(
            prompt=ids,
            settings=settings,
            row=row,
            limit=min(limit for limit in limits if limit),
            stop_tokens=self.stop_tokens | special,
            text_stream=TextStream(self.tokenizer, settings.stops),
            streams=streams,
            notify=notify,
        )
        if (error := self.check(ids)) is not None:
            request.fail(error)
        return request


def special_stops(tokenizer: Any, stops: Iterable[str]) -> frozenset[int]:
    """Stops that are a special token, which no text shows: ["<|im_end|>", "User:"] -> {151645}."""
    ids = {str(token.content): id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(ids[stop] for stop in stops if stop in ids)
