"""What the front process and a replica say to each other, and how it goes through a socket. No torch here.

Messages are pickles, each behind its length. Both ends are processes of one server on a socket pair that nothing else
can open, so no bytes of a client are ever unpickled.
"""

from __future__ import annotations

import asyncio
import pickle
import struct
from dataclasses import dataclass, field
from typing import Any

HEAD = struct.Struct("!Q")

Record = dict[str, Any]
"""A row's answer, as `finetune predict` writes it: {"row": 0, ...} or {"row": 0, "error": {"kind", "message"}}."""


@dataclass(frozen=True)
class ModelFacts:
    """What the endpoints need to know of the model. name: as clients call it. task: the name of its card.

    roles: role -> what it holds, and columns: role -> the column of the training data. image: the role that holds an
    image, "" for none. line_role: the role of a row that is a text alone, "" for none. targets: roles and columns of what
    the answer should be, which are not read. labels: names of the classes. writes: it generates text. chats: and has a
    chat template. max_length: in tokens; None for none. device: what it runs on.
    """

    name: str
    task: str
    title: str = ""
    roles: dict[str, str] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    image: str = ""
    line_role: str = ""
    targets: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    options: tuple[str, ...] = ("top_k", "threshold")
    writes: bool = False
    chats: bool = False
    max_length: int | None = None
    device: str = "cpu"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sampling:
    """How a text is generated. prompt: {"messages": [...]}, or {"prompt": text} to be continued as it is.

    temperature: 0 is greedy. top_k: 0 for all tokens. seed: None for a different text each time. stop: texts before
    which the reply ends. max_tokens: None for as many as fit. logprobs: the log-probability of each token.
    """

    prompt: dict[str, Any]
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: bool = False


@dataclass(frozen=True)
class Piece:
    """Part of a reply. finish_reason: stop or length with the last piece, else "". error: with the last piece, why there
    is no reply. prompt_tokens: with the first and the last piece. logprobs: [(token's text, its log-probability)].
    """

    text: str = ""
    tokens: int = 0
    finish_reason: str = ""
    prompt_tokens: int = 0
    logprobs: tuple[tuple[str, float], ...] = ()
    error: tuple[str, str] | None = None  # (kind, message)


@dataclass(frozen=True)
class BatchRun:
    """A chunk that was answered, for the metrics."""

    rows: int
    seconds: float


# From a replica.
@dataclass(frozen=True)
class Ready:
    """The model is loaded."""

    facts: ModelFacts


@dataclass(frozen=True)
class Refused:
    """The model cannot be served. error: a FinetuneError, to be raised in the front process."""

    error: Exception


@dataclass(frozen=True)
class Answers:
    """Records of all rows of an Ask, in their order."""

    id: int
    records: list[Record]


@dataclass(frozen=True)
class Written:
    """The next piece of the text that a Write asked for."""

    id: int
    piece: Piece


# To a replica.
@dataclass(frozen=True)
class Ask:
    """Rows to be answered. top_k, threshold: see Backend.predict."""

    id: int
    rows: list[dict[str, Any]]
    top_k: int = 1
    threshold: float | None = None


@dataclass(frozen=True)
class Write:
    """A text to be written; answered by several Written."""

    id: int
    sampling: Sampling


@dataclass(frozen=True)
class Cancel:
    """The client of an Ask or Write is gone: nothing more is computed for it."""

    id: int


Message = Ready | Refused | Answers | Written | BatchRun | Ask | Write | Cancel


def send(writer: asyncio.StreamWriter, message: Message) -> None:
    """Put a message into the writer's buffer."""
    content = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    writer.write(HEAD.pack(len(content)))
    writer.write(content)


async def receive(reader: asyncio.StreamReader) -> Message | None:
    """The next message; None if the other process is gone."""
    try:
        (length,) = HEAD.unpack(await reader.readexactly(HEAD.size))
        message: Message = pickle.loads(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    return message
