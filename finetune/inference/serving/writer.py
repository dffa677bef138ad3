"""Writer: prompts of the chat and completions API through a text generator, whose threads write many of them at once."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

from finetune.errors import FinetuneError, TrainingFailed
from finetune.inference.answering import Answered, Outcome, RowError
from finetune.inference.generation.generator import TextGenerator
from finetune.inference.generation.requests import GenerationSettings, Reply, Request
from finetune.inference.serving.messages import Piece, Sampling
from finetune.tasks.batch import Answer

PromptEncoder = Callable[[dict[str, Any]], "list[int] | RowError"]
"""{"messages": [...]} or {"prompt": text} -> token ids. Any number of threads may call it."""


class Writer:
    """settings: makes those of the model's training, with changes (see AskedModel.generation_settings).

    decode: token id -> its text. broken: called on the event loop with why the model cannot write any more.
    """

    def __init__(
        self,
        generator: TextGenerator,
        encode: PromptEncoder,
        decode: Callable[[int], str],
        *,
        settings: Callable[..., GenerationSettings],
        broken: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self._generator, self._encode, self._decode = generator, encode, decode
        self._make_settings, self._broken = settings, broken

    async def write(self, sampling: Sampling) -> AsyncIterator[Piece]:
        """The reply as it is written. Closing the iterator ends the request."""
        loop = asyncio.get_running_loop()
        prompt = await loop.run_in_executor(None, self._encode, sampling.prompt)
        if isinstance(prompt, RowError):
            yield Piece(error=(prompt.kind, prompt.message))
            return
        came = asyncio.Event()

        def notify(request: Request) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(came.set)

        try:
            request = self._generator.submit(prompt, self._settings(sampling), row=0, streams=True, notify=notify)
        except FinetuneError as error:
            self._check()
            yield Piece(error=("failed" if isinstance(error, TrainingFailed) else "unsupported", str(error)))
            return
        try:
            sent = 0
            while not request.done:
                await came.wait()
                came.clear()
                text, written = "".join(request.waiting_pieces()), len(request.tokens)
                if text and not request.done:
                    yield Piece(text, written - sent, prompt_tokens=len(prompt))
                    sent = written
                    text = ""
                if request.done:
                    yield self._last(request, text, sent, len(prompt), sampling)
                    return
            yield self._last(request, "", sent, len(prompt), sampling)
        finally:
            if not request.done:
                self._generator.cancel(request)

    async def reply(self, prompt: list[int]) -> Outcome:
        """The likeliest reply to token ids, whole: the answer of a row of /predict. Cancelling the call ends it."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        def notify(request: Request) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(ended.set)

        try:
            request = self._generator.submit(prompt, self._make_settings(), notify=notify)
        except FinetuneError as error:
            self._check()
            return RowError("failed", str(error))
        try:
            while not request.done:
                await ended.wait()
                ended.clear()
        finally:
            if not request.done:
                self._generator.cancel(request)
        outcome = request.wait()
        if isinstance(outcome, RowError):
            self._check()
            return outcome
        return Answered(Answer(0, {"text": outcome.text.strip(), "finish_reason": outcome.finish_reason}))

    def close(self) -> None:
        """End all requests and the generator's threads."""
        self._generator.close()

    def _check(self) -> None:
        """Tell `broken` if the generator cannot go on."""
        try:
            self._generator.raise_if_broken()
        except FinetuneError as error:
            self._broken(error)

    def _last(self, request: Request, text: str, sent: int, prompt_tokens: int, sampling: Sampling) -> Piece:
        outcome = request.outcome
        if isinstance(outcome, RowError):
            self._check()
            return Piece(error=(outcome.kind, outcome.message), prompt_tokens=prompt_tokens)
        assert isinstance(outcome, Reply)
        text += "".join(request.waiting_pieces())
        named: tuple[tuple[str, float], ...] = ()
        if sampling.logprobs:
            named = tuple(zip(map(self._decode, outcome.tokens), outcome.logprobs, strict=False))
        return Piece(text, len(outcome.tokens) - sent, outcome.finish_reason, prompt_tokens, named)

    def _settings(self, sampling: Sampling) -> GenerationSettings:
        """Raises: UserError for values out of range."""
        return self._make_settings(
            new_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            beams=1 if sampling.temperature else None,
            stops=sampling.stop or None,
            seed=secrets.randbits(48) if sampling.seed is None else sampling.seed,
            logprobs=sampling.logprobs,
        )
