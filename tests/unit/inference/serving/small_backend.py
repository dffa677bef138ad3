"""A Backend without a model or torch, for the tests of what is around it; as a program, a replica or a whole server of it.

    python -m tests.unit.inference.serving.small_backend replica FD
    python -m tests.unit.inference.serving.small_backend server PORT [LIMIT=VALUE ...]

A row {"text": ...} is answered with the text's length; "sleep 0.5" takes so long, "die" ends the process, "bad" is an error.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from typing import Any

from finetune.errors import UserError
from finetune.inference.serving.app import Service
from finetune.inference.serving.guard import LOCAL_NAMES, Gate
from finetune.inference.serving.limits import Limits
from finetune.inference.serving.link import serve_link
from finetune.inference.serving.messages import BatchRun, ModelFacts, Piece, Record, Sampling
from finetune.inference.serving.server import Serving, bind

FACTS = ModelFacts("small", "text_classification", roles={"text": "The text."}, labels=("a", "b"), options=("top_k",))
WRITING = ModelFacts("small", "causal_lm", writes=True, chats=True, max_length=64)


class SmallBackend:
    """asked: the rows of each call. cancelled: calls that nobody waited for. living: texts that are being written."""

    def __init__(self, facts: ModelFacts = FACTS) -> None:
        self.facts, self.replicas = facts, (1, 1)
        self.asked: list[list[dict[str, Any]]] = []
        self.samplings: list[Sampling] = []
        self.cancelled = self.living = 0
        self.closed = False

    async def predict(self, rows: list[dict[str, Any]], *, top_k: int, threshold: float | None) -> list[Record]:
        self.asked.append(rows)
        try:
            return [await self._answer(place, row) for place, row in enumerate(rows)]
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def _answer(self, place: int, row: dict[str, Any]) -> Record:
        text = str(row.get("text", ""))
        if text.startswith("sleep"):
            await asyncio.sleep(float(text.split()[1]))
        if text == "die":
            os._exit(9)
        if text == "bug":
            raise RuntimeError("secret of the server")
        if text == "bad":
            return {"row": place, "error": {"kind": "bad_row", "message": "bad"}}
        return {"row": place, "length": len(text), "process": os.getpid()}

    async def write(self, sampling: Sampling) -> AsyncIterator[Piece]:
        """The words of the prompt again, one by one, with a moment between them; "fail" is an error."""
        self.samplings.append(sampling)
        self.living += 1
        try:
            text = sampling.prompt.get("prompt") or str(sampling.prompt["messages"][-1]["content"])
            words = text.split()[: sampling.max_tokens or 1000]
            for index, word in enumerate(words):
                await asyncio.sleep(0.002)
                if word == "fail":
                    yield Piece(error=("too_long", "too long"))
                    return
                if word == "die":
                    os._exit(9)
                last = index == len(words) - 1
                finish = "" if not last else "length" if len(words) == sampling.max_tokens else "stop"
                logprobs = ((word, -0.5),) if sampling.logprobs and last else ()
                yield Piece(f"{word} ", 1, finish, len(text.split()), logprobs)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise
        finally:
            self.living -= 1

    async def close(self) -> None:
        self.closed = True


async def _open(ran: Any, broken: Any) -> SmallBackend:
    if os.environ.get("SMALL_REFUSES"):
        raise UserError("no such model", where="here")
    ran(BatchRun(1, 0.1))
    return SmallBackend(WRITING if os.environ.get("SMALL_WRITES") else FACTS)


async def _serve(port: int, given: dict[str, float]) -> int:
    limits = Limits(**given)  # type: ignore[arg-type]
    sock = bind("127.0.0.1", port)

    async def open_backend(failed: Any) -> SmallBackend:
        print(sock.getsockname()[1], flush=True)
        return SmallBackend(WRITING if os.environ.get("SMALL_WRITES") else FACTS)

    serving = Serving(sock, lambda backend: Service(backend, limits, Gate("", LOCAL_NAMES)), open_backend, print)
    return await serving.run()


def main() -> None:
    kind, number, *rest = sys.argv[1:]
    if kind == "replica":
        os._exit(asyncio.run(serve_link(socket.socket(fileno=int(number)), _open)))
    given = {name: float(value) if "." in value else int(value) for name, value in (item.split("=") for item in rest)}
    sys.exit(asyncio.run(_serve(int(number), given)))


if __name__ == "__main__":
    main()
