"""`finetune chat` behind a generator that writes what it is told to: a program for test_chat.py.

A turn "SAY x" is answered with x, in which % stands for escape; "SLOWLY" with letters until it is cancelled,
"BRIEFLY" with fewer.
"""

from __future__ import annotations

import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

from finetune.app.chat import Chat, prompt_limit
from finetune.app.chat_screen import ChatScreen
from finetune.inference.answering import RowError
from finetune.inference.generation.conversation import Conversation
from finetune.inference.generation.requests import GenerationSettings, Reply, Request
from finetune.tasks.causal_lm.task import TASK
from tests.unit.inference.generation.models import letters


class Told:
    """A TextGenerator."""

    most_tokens = 200

    def submit(self, prompt: list[int], settings: Any, *, row: int, streams: bool) -> Request:
        request = Request(prompt, settings, row, 100, frozenset(), SimpleNamespace(text=""), streams=streams)
        said = letters().decode(prompt).split("<turn>")[-2].removeprefix(" :")
        threading.Thread(target=self._write, args=(request, said), daemon=True).start()
        return request

    def _write(self, request: Request, said: str) -> None:
        if said == "FAIL":
            request.fail(RowError("failed", "it broke"))
            return
        words = (
            (["A "] * {"SLOWLY": 400, "BRIEFLY": 40}[said])
            if said in ("SLOWLY", "BRIEFLY")
            else [said.removeprefix("SAY ").replace("%", "\x1b")]
        )
        for word in words:
            request._pieces.put(word)
            time.sleep(0.02)
            if request.done:
                return
        request._end(Reply(words[0], "stop", (5,)))

    def cancel(self, request: Request) -> None:
        request._end(Reply("A", "cancelled", (5,)))


def main() -> int:
    tokenizer = letters()
    artifacts: Any = SimpleNamespace(
        processor=tokenizer, options=SimpleNamespace(system=""), settings={"own_template": True}
    )
    settings, generator = GenerationSettings(new_tokens=20), Told()
    limit = prompt_limit(generator, settings)  # type: ignore[arg-type]
    talk = Conversation(TASK, artifacts, "", limit)
    screen = ChatScreen()
    try:
        with screen.keyboard:
            return Chat(screen, talk, generator, settings).run()  # type: ignore[arg-type]
    except KeyboardInterrupt:  # as finetune.cli does
        print("interrupted")
        return 130


if __name__ == "__main__":
    sys.exit(main())
