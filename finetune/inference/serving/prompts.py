"""Prompts of the chat and completions API as token ids, as the task encodes what it is asked in training and prediction."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.errors import is_failure
from finetune.inference.answering import RowError
from finetune.inference.serving.served_model import bad_row_error
from finetune.tasks import CARDS, load_task
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.text.limits import limit_of
from finetune.tasks.text.row_formats import RowEncoder


class PromptEncoder:
    """{"messages": [...]} or {"prompt": text} -> token ids, or why there are none. Any number of threads may call it.

    A conversation goes through the model's chat template. A prompt is continued as it is; where the model reads a source
    and writes a target, it is the source.
    """

    def __init__(self, artifacts: TaskArtifacts) -> None:
        self._artifacts = artifacts
        self._own = threading.local()

    def __call__(self, prompt: Mapping[str, Any]) -> list[int] | RowError:
        if not hasattr(self._own, "processor"):  # tokenizers refuse to be used by two threads while one changes them
            self._own.processor = copy.deepcopy(self._artifacts.processor)
        try:
            (encoded,) = self._encode(self._own.processor, prompt)
        except BadRow as bad:
            encoded = bad
        except BaseException as error:  # nothing foresaw it: the request learns of it, and nobody else
            if not is_failure(error):
                raise
            encoded = BadRow(f"the prompt cannot be encoded: {type(error).__name__}: {error}"[:500])
        if isinstance(encoded, BadRow):
            return bad_row_error(encoded)
        return [int(token) for token in encoded["input_ids"]]

    def _encode(self, tokenizer: Any, prompt: Mapping[str, Any]) -> list[dict[str, Any] | BadRow]:
        options, settings = self._artifacts.options, self._artifacts.settings
        if "source" in CARDS[self._artifacts.task].rows.columns:
            artifacts = replace(self._artifacts, processor=tokenizer)
            rows = [{"source": prompt["prompt"]}]
            return load_task(self._artifacts.task).encode(artifacts, rows, with_targets=False)
        chats = "messages" in prompt
        encoder = RowEncoder(
            tokenizer,
            form="messages" if chats else "text",
            own_template=True,
            system=getattr(options, "system", ""),
            train_on="reply",
            limit=limit_of(self._artifacts),
            on_long="error",
            tools=settings.get("tools", ()),
        )
        return encoder.encode(
            [{"messages": prompt["messages"]} if chats else {"text": prompt["prompt"]}], with_targets=False
        )
