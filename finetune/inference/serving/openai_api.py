"""The OpenAI chat and completions API (https://platform.openai.com/docs/api-reference), streamed and not."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from finetune.inference.serving.backend import Backend
from finetune.inference.serving.faults import RequestFault
from finetune.inference.serving.intake import Admission, Bodies, read_body, require_json, while_connected
from finetune.inference.serving.json_body import parse_json
from finetune.inference.serving.limits import Limits
from finetune.inference.serving.messages import ModelFacts, Piece, Sampling
from finetune.inference.serving.metrics import Metrics
from finetune.inference.serving.openai_requests import AskedTexts, read_chat, read_completion
from finetune.inference.serving.responses import EventStream, json_response

MODELS = "/v1/models/"  # before the name of a model
STATUS = {"out_of_memory": 503, "failed": 500}  # of a reply's error, by its kind; others are the request's fault: 400


class OpenAIEndpoints:
    """Endpoints of models that write text; for others they are 404 and say where to ask."""

    def __init__(self, backend: Backend, limits: Limits, texts: Admission, bodies: Bodies, metrics: Metrics) -> None:
        self._backend, self._limits, self._texts, self._metrics = backend, limits, texts, metrics
        self._bodies = bodies
        self._started = int(time.time())

    async def models(self, request: Request) -> Response:
        """The one model that is served."""
        return json_response({"object": "list", "data": [self._described()]})

    async def model(self, request: Request) -> Response:
        """The model by its name, which follows MODELS in the path. 404 for any other."""
        name, served = request.scope["path"].removeprefix(MODELS), self._backend.facts.name
        if name != served:
            raise RequestFault(404, "no_model", f"there is no model {name[:100]}; the one that is served is {served}")
        return json_response(self._described())

    def _described(self) -> dict[str, Any]:
        return {"id": self._backend.facts.name, "object": "model", "created": self._started, "owned_by": "finetune"}

    async def chat(self, request: Request) -> Response:
        """A reply to a conversation."""
        facts = self._writing_facts()
        if not facts.chats:
            raise RequestFault(404, "no_chat", "the model has no chat template: use /v1/completions")
        asked = read_chat(await self._body(request), facts, self._limits)
        return await self._answer(request, asked, _Shape(facts.name, chat=True))

    async def complete(self, request: Request) -> Response:
        """What follows a prompt."""
        facts = self._writing_facts()
        asked = read_completion(await self._body(request), facts, self._limits)
        return await self._answer(request, asked, _Shape(facts.name, chat=False))

    async def _body(self, request: Request) -> Any:
        require_json(request)
        with self._bodies.hold() as take:  # what is kept of it is short: prompts have a limit of their own
            return parse_json(await read_body(request, self._limits, take))

    def _writing_facts(self) -> ModelFacts:
        facts = self._backend.facts
        if not facts.writes:
            raise RequestFault(404, "no_text", f"the task {facts.task} writes no text: use /predict")
        return facts

    async def _answer(self, request: Request, asked: AskedTexts, shape: _Shape) -> Response:
        headers = {"X-Ignored-Parameters": ", ".join(asked.ignored)} if asked.ignored else {}
        if asked.stream:
            return await self._stream(request, asked, shape, headers)
        with self._texts.hold(len(asked.samplings)):
            work = asyncio.gather(*(self._whole(sampling) for sampling in asked.samplings))
            replies = await while_connected(request, work, self._limits.answer_seconds)
        return json_response(shape.whole(replies), headers=headers)

    async def _stream(self, request: Request, asked: AskedTexts, shape: _Shape, headers: dict[str, str]) -> Response:
        """The first piece is waited for, so that a request that is refused has a status of its own."""
        async with AsyncExitStack() as stack:
            stack.enter_context(self._texts.hold(1))
            pieces = await stack.enter_async_context(aclosing(self._backend.write(asked.samplings[0])))  # type: ignore[type-var]
            first = await while_connected(request, anext(pieces), self._limits.answer_seconds)
            if first.error:
                raise self._fault(first.error)
            events = self._events(first, pieces, asked, shape)
            return EventStream(events, stack.pop_all(), headers=headers)

    async def _whole(self, sampling: Sampling) -> list[Piece]:
        """All pieces of a reply. Raises: RequestFault for one that ends with an error."""
        pieces = []
        async with aclosing(self._backend.write(sampling)) as stream:  # type: ignore[type-var]
            async for piece in stream:
                if piece.error:
                    raise self._fault(piece.error)
                pieces.append(piece)
        self._count(pieces)
        return pieces

    async def _events(
        self, first: Piece, pieces: AsyncIterator[Piece], asked: AskedTexts, shape: _Shape
    ) -> AsyncIterator[Any]:
        seen = [first]
        try:
            if shape.chat:
                yield shape.event({"role": "assistant", "content": ""}, "")
            yield shape.piece_event(first)
            while not seen[-1].finish_reason:
                piece = await anext(pieces)
                if piece.error:
                    self._metrics.errors.add(kind=piece.error[0])
                    yield self._fault(piece.error).body()
                    return
                seen.append(piece)
                yield shape.piece_event(piece)
            if asked.include_usage:
                yield {**shape.head(), "choices": [], "usage": usage([seen])}
        finally:
            self._count(seen)

    def _count(self, pieces: list[Piece]) -> None:
        self._metrics.rows.add()
        self._metrics.tokens.add(pieces[-1].prompt_tokens, kind="prompt")
        self._metrics.tokens.add(sum(piece.tokens for piece in pieces), kind="completion")

    def _fault(self, error: tuple[str, str]) -> RequestFault:
        kind, message = error
        return RequestFault(STATUS.get(kind, 400), kind, message)


class _Shape:
    """How the answers of an endpoint look. chat: messages; otherwise texts."""

    def __init__(self, model: str, *, chat: bool) -> None:
        self.model, self.chat = model, chat
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.created = int(time.time())

    def head(self, *, streamed: bool = True) -> dict[str, Any]:
        kind = "chat.completion" if self.chat else "text_completion"
        name = f"{kind}.chunk" if self.chat and streamed else kind
        return {"id": self.id, "object": name, "created": self.created, "model": self.model}

    def piece_event(self, piece: Piece) -> dict[str, Any]:
        """One event of a stream."""
        if self.chat:
            return self.event({"content": piece.text} if piece.text else {}, piece.finish_reason)
        choice = {"index": 0, "text": piece.text, "finish_reason": piece.finish_reason or None, "logprobs": None}
        return {**self.head(), "choices": [choice]}

    def event(self, delta: dict[str, Any], finish_reason: str) -> dict[str, Any]:
        """One event of a chat."""
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason or None, "logprobs": None}
        return {**self.head(), "choices": [choice]}

    def whole(self, replies: list[list[Piece]]) -> dict[str, Any]:
        """All replies at once."""
        choices = [self._choice(index, pieces) for index, pieces in enumerate(replies)]
        return {**self.head(streamed=False), "choices": choices, "usage": usage(replies)}

    def _choice(self, index: int, pieces: list[Piece]) -> dict[str, Any]:
        text, last = "".join(piece.text for piece in pieces), pieces[-1]
        said: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        return {"index": index, **said, "finish_reason": last.finish_reason, "logprobs": self._logprobs(last)}

    def _logprobs(self, last: Piece) -> dict[str, Any] | None:
        if not last.logprobs:
            return None
        if self.chat:
            return {
                "content": [{"token": token, "logprob": value, "top_logprobs": []} for token, value in last.logprobs]
            }
        tokens, values = zip(*last.logprobs, strict=True)
        return {"tokens": list(tokens), "token_logprobs": list(values)}


def usage(replies: list[list[Piece]]) -> dict[str, int]:
    """Tokens of all prompts and of all replies."""
    prompt = sum(pieces[-1].prompt_tokens for pieces in replies)
    written = sum(piece.tokens for pieces in replies for piece in pieces)
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
