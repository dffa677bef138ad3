"""The words of generation: what is asked of a text generator, and what comes back."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from finetune.errors import UserError
from finetune.inference.answering import RowError
from finetune.inference.generation.text_stream import TextStream

FinishReason = Literal["stop", "length", "cancelled"]
MOST_BEAMS = 1024  # each is computed as a sequence of its own


@dataclass(frozen=True)
class GenerationSettings:
    """How a reply is written.

    new_tokens: at most; fewer where the model's length ends before. temperature: 0: the likeliest token each time.
    top_p, top_k: sample only from the likeliest tokens that have this probability together, or that many (1.0, 0: all).
    repetition_penalty: divides (positive) or multiplies (negative) the logits of tokens in the prompt and the reply.
    beams: sequences kept by a beam search; 1: none. stops: texts that end a reply, and are not part of it.
    seed: of the noise of sampling, together with the request's row and the position of the token: the same row gets the
    same text in any batch and on any number of ranks. logprobs: keep the log-probability of each token under the model.
    """

    new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    beams: int = 1
    stops: tuple[str, ...] = ()
    seed: int = 0
    logprobs: bool = False

    def __post_init__(self) -> None:
        """Raises: UserError for a value out of range, or values that contradict each other."""
        checks = (
            ("--max-new-tokens", self.new_tokens, self.new_tokens >= 1, "at least 1"),
            ("--temperature", self.temperature, 0 <= self.temperature < float("inf"), "0 or more"),
            ("--top-p", self.top_p, 0 < self.top_p <= 1, "more than 0 and at most 1"),
            ("--top-k", self.top_k, self.top_k >= 0, "0 (all) or more"),
            ("--repetition-penalty", self.repetition_penalty, 0 < self.repetition_penalty < float("inf"), "positive"),
            ("--beams", self.beams, 1 <= self.beams <= MOST_BEAMS, f"1 to {MOST_BEAMS:,}"),
            ("--seed", self.seed, 0 <= self.seed < 2**63, "0 to 2^63 - 1"),
            ("--stop", "''", all(self.stops), "a text that is not empty"),
        )
        for flag, value, is_right, allowed in checks:
            if not is_right:
                raise UserError(f"{value} is out of range", where=flag, remedy=f"It must be {allowed}.")
        if self.beams > 1 and self.temperature > 0:
            raise UserError(
                "a beam search looks for the likeliest text and does not sample",
                where="--beams",
                remedy="Leave out --temperature, or set --beams 1.",
            )
        if self.beams > 1 and self.logprobs:
            raise UserError(
                "a beam search does not keep the log-probabilities of its tokens",
                where="--beams",
                remedy="Leave out --logprobs, or set --beams 1.",
            )

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn."""
        return self.temperature > 0


@dataclass(frozen=True)
class Reply:
    """text: without the stop and without special tokens. tokens: ids, a stop token included.

    finish_reason: stop (a stop token or text), length (new_tokens, or the model's length) or cancelled.
    logprobs: one per token where they were asked for, natural logarithms, before temperature and penalties.
    """

    text: str
    finish_reason: FinishReason
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...] = ()


@dataclass(eq=False)
class Request:
    """A prompt that is being answered. Made by `TextGenerator.submit`; threads may wait for it at the same time.

    row: names the noise of its sampling, see GenerationSettings. limit: tokens that it may write.
    notify: called from the generator's thread, after each piece of text if `streams`, and once when it is done.
    """

    prompt: list[int]
    settings: GenerationSettings
    row: int
    limit: int
    stop_tokens: frozenset[int]
    text_stream: TextStream
    streams: bool = False
    notify: Callable[[Request], None] | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    _seen: dict[int, None] = field(default_factory=dict)
    outcome: Reply | RowError | None = None
    _done: threading.Event = field(default_factory=threading.Event)
    _lock: threading.RLock = field(default_factory=threading.RLock)  # a caller may cancel while a token comes
    _pieces: queue.SimpleQueue[str | None] = field(default_factory=queue.SimpleQueue)

    @property
    def done(self) -> bool:
        """Whether there is an outcome."""
        return self.outcome is not None

    @property
    def is_complete(self) -> bool:
        """Whether its last token is one that ends every reply, or the last one allowed."""
        return len(self.tokens) >= self.limit or (bool(self.tokens) and self.tokens[-1] in self.stop_tokens)

    def seen_tokens(self) -> list[int]:
        """Each token of the prompt and of what is written so far, once. Called from the generator's thread."""
        if not self._seen:
            self._seen = dict.fromkeys([*self.prompt, *self.tokens])
        return list(self._seen)

    def wait(self, timeout: float | None = None) -> Reply | RowError:
        """The outcome. Raises: TimeoutError after `timeout` seconds."""
        if not self._done.wait(timeout):
            raise TimeoutError
        assert self.outcome is not None
        return self.outcome

    def pieces(self) -> Iterator[str]:
        """The text as it is written, piece by piece, for a request that `streams`; ends when there is an outcome."""
        while (piece := self._pieces.get()) is not None:
            yield piece

    def waiting_pieces(self) -> list[str]:
        """The pieces that came since, without waiting."""
        found = []
        while not self._pieces.empty():
            if (piece := self._pieces.get()) is not None:
                found.append(piece)
        return found

    def take(self, token: int, logprob: float | None) -> None:
        """The generator wrote a token; the request is done if it is the last one."""
        with self._lock:
            if self.done:
                return
            self.tokens.append(token)
            if self._seen:
                self._seen[token] = None
            if logprob is not None:
                self.logprobs.append(logprob)
            at_stop = token in self.stop_tokens
            if not at_stop and self._follows_text:
                self._emit(self.text_stream.push(token))
            if at_stop or self.text_stream.stopped:
                self._finish("stop")
            elif len(self.tokens) >= self.limit:
                self._finish("length")

    def restart(self) -> None:
        """Forget what was written, to be written again. What a caller has seen already cannot be: then it fails."""
        with self._lock:
            if self.streams and self.tokens:
                self.fail(RowError("failed", "its batch failed after a part of the reply was shown"))
            self.tokens.clear()
            self.logprobs.clear()
            self._seen = {}
            self.text_stream.clear()

    def fail(self, error: RowError) -> None:
        """End it without a reply."""
        self._end(error)

    def cancel(self) -> None:
        """End it with what it has; the generator then forgets it."""
        self._finish("cancelled")

    def finish(self, tokens: Sequence[int], finish_reason: FinishReason) -> None:
        """The whole reply at once, from a generator that does not write token by token (a beam search)."""
        for token in tokens:
            self.take(token, None)
        if not self.done:
            self._finish(finish_reason)

    @property
    def _follows_text(self) -> bool:
        return self.streams or bool(self.settings.stops)

    def _finish(self, reason: FinishReason) -> None:
        with self._lock:
            if self.done:
                return
            if self._follows_text:
                self._emit(self.text_stream.close())
                text = self.text_stream.text
            else:
                at_stop = bool(self.tokens) and self.tokens[-1] in self.stop_tokens
                text = self.text_stream.decode(self.tokens[:-1] if at_stop else self.tokens)
            self._end(Reply(text, reason, tuple(self.tokens), tuple(self.logprobs)))

    def _emit(self, piece: str) -> None:
        if piece and self.streams:
            self._pieces.put(piece)
            if self.notify is not None:
                self.notify(self)

    def _end(self, outcome: Reply | RowError) -> None:
        with self._lock:
            if self.done:
                return
            self.outcome = outcome
        self._done.set()
        self._pieces.put(None)
        if self.notify is not None:
            self.notify(self)
