"""The options of `finetune chat`, as the command line gives them. No heavy imports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ChatOptions:
    """See the help of the command. Every field is an option, but `model`, the argument.

    A new option is a field here and an entry of cli/chat_parameters.py.
    """

    model: str
    checkpoint: str = "best"
    system: str = ""
    new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stops: tuple[str, ...] = ()
    trust_remote_code: bool = False
