"""Generation with transformers' `generate`: batches of requests of similar length, each as long as its longest reply.

Takes every model and every setting: encoder-decoder models, beam searches, models over several devices. Greedy and sampled
tokens are chosen by `sampler.py`, as in continuous batching. A batch that fails is halved, down to the request that fails
alone; where memory runs out, later batches are half as large as well.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from finetune.errors import TrainingFailed
from finetune.inference.answering import RowError
from finetune.inference.generation.cache_size import is_out_of_memory
from finetune.inference.generation.generator import TextGenerator
from finetune.inference.generation.model_gate import ModelGate
from finetune.inference.generation.prompts import PromptRules
from finetune.inference.generation.requests import GenerationSettings, Request
from finetune.inference.generation.sampler import choose_tokens

CPU_SLOTS, GPU_SLOTS = 16, 64


class StaticGenerator(TextGenerator):
    """model: takes `generate`; of an adapter its base. why: it is used instead of continuous batching.

    encoder_decoder: prompts are what the encoder reads.
    """

    method = "generate"

    def __init__(
        self,
        model: Any,
        rules: PromptRules,
        why: str,
        *,
        encoder_decoder: bool = False,
        autocast: torch.dtype | None = None,
        slots: int = 0,
    ) -> None:
        self.rules, self.why = rules, why
        self._model, self._encoder_decoder = model, encoder_decoder
        self._device = next(model.parameters()).device
        self._slots = slots or (GPU_SLOTS if self._device.type == "cuda" else CPU_SLOTS)
        self._was_training = model.training
        model.eval()
        self._gate = ModelGate(model, autocast)
        self._waiting: list[Request] = []
        self._batch: list[Request] = []
        self._changed = threading.Condition()
        self._failed: TrainingFailed | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="generation", daemon=True)
        self._thread.start()

    @property
    def slots(self) -> int:
        """Requests of a batch."""
        return self._slots

    def submit(
        self,
        prompt: Sequence[int],
        settings: GenerationSettings,
        *,
        row: int = 0,
        streams: bool = False,
        notify: Callable[[Request], None] | None = None,
    ) -> Request:
        """See TextGenerator."""
        request = self.rules.request(prompt, settings, row, streams, notify)
        with self._changed:
            if self._failed is not None:
                raise self._failed
            if self._closing:
                raise RuntimeError("the generator is closed")
            if not request.done:
                self._waiting.append(request)
                self._changed.notify_all()
        return request

    def cancel(self, request: Request) -> None:
        """See TextGenerator. A batch goes on without it."""
        request.cancel()

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """See TextGenerator."""
        with self._gate.held():
            yield

    def close(self) -> None:
        """See TextGenerator."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
            rest = [*self._waiting, *self._batch]
            self._changed.notify_all()
        for request in rest:
            request.cancel()
        self._thread.join()
        self._gate.remove()
        self._model.train(self._was_training)

    def _work(self) -> None:
        """The thread of the generator."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if self._closing:
                    return
                self._batch = batch = self._next_batch()
            try:
                self._answer(batch)
            except Exception as error:  # whoever waits must not wait forever
                with self._changed:
                    self._failed = TrainingFailed(f"the text generator stopped: {type(error).__name__}: {error}")
                    rest, self._waiting = [*batch, *self._waiting], []
                for request in rest:
                    request.fail(RowError("failed", self._failed.what))
                raise

    def _next_batch(self) -> list[Request]:
        """Of those that wait, the longest first, such as go into one call of `generate`."""
        self._waiting = sorted((one for one in self._waiting if not one.done), key=lambda one: -len(one.prompt))
        if not self._waiting:
            return []
        kind = _kind(self._waiting[0])
        batch = [one for one in self._waiting if _kind(one) == kind][: self._slots]
        chosen = set(map(id, batch))
        self._waiting = [one for one in self._waiting if id(one) not in chosen]
        return batch

    def _answer(self, batch: list[Request]) -> None:
        batch = [request for request in batch if not request.done]
        if not batch:
            return
        try:
            self._generate(batch)
            return
        except Exception as error:
            kind, message = "failed", f"{type(error).__name__}: {error}".partition("\n")[0]
            if is_out_of_memory(message):
                kind = "out_of_memory"
                self._slots = max(1, min(self._slots, len(batch)) // 2)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # raises where the GPU no longer works
            torch.cuda.empty_cache()
        if len(batch) == 1:
            batch[0].fail(RowError(kind, message))
            return
        half = len(batch) // 2
        for part in (batch[:half], batch[half:]):
            for request in part:
                request.restart()
            self._answer(part)

    @torch.no_grad()
    def _generate(self, batch: list[Request]) -> None:
        settings, pad = batch[0].settings, self.rules.tokenizer.pad_token_id or 0
        inputs = _padded([request.prompt for request in batch], pad, left=not self._encoder_decoder)
        by_token = settings.beams == 1
        options: dict[str, Any] = {
            "max_new_tokens": max(request.limit for request in batch),
            "num_beams": settings.beams,
            "repetition_penalty": 1.0 if by_token else settings.repetition_penalty,
            "eos_token_id": sorted(batch[0].stop_tokens) or None,
        }
        if self._encoder_decoder:
            options["decoder_start_token_id"] = self._model.config.decoder_start_token_id
        made = self._model.generate(
            **{name: tensor.to(self._device) for name, tensor in inputs.items()},
            generation_config=GenerationConfig(do_sample=False, pad_token_id=pad, use_cache=True, **options),
            logits_processor=LogitsProcessorList([_Chooser(batch)] if by_token else []),
            stopping_criteria=StoppingCriteriaList([_Ended(batch)] if by_token else []),
        )
        if by_token:
            for request in batch:
                request.finish((), "length")  # where the model's own length ended it
            return
        start = 1 if self._encoder_decoder else inputs["input_ids"].shape[1]
        for request, row in zip(batch, made[:, start:].tolist(), strict=True):
            request.finish(row, "length")


class _Chooser:
    """Chooses the tokens of a batch; a processor of logits for `generate`."""

    def __init__(self, batch: Sequence[Request]) -> None:
        self._batch = batch

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return choose_tokens(scores.float(), self._batch)


class _Ended:
    """Which requests are done; a stopping criterion for `generate`."""

    def __init__(self, batch: Sequence[Request]) -> None:
        self._batch = batch

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        return torch.tensor([request.done for request in self._batch], device=input_ids.device)


def _kind(request: Request) -> tuple[Any, ...]:
    """Requests of one kind go into one call. A beam search knows no limit, penalty or stop of a single one."""
    settings = request.settings
    if settings.beams == 1:
        return (1,)
    return settings.beams, settings.repetition_penalty, request.limit, request.stop_tokens


def _padded(prompts: Sequence[list[int]], pad: int, *, left: bool) -> dict[str, Tensor]:
    width = max(map(len, prompts))
    rows, masks = [], []
    for prompt in prompts:
        padding, mask = [pad] * (width - len(prompt)), [0] * (width - len(prompt))
        rows.append(padding + prompt if left else prompt + padding)
        masks.append(mask + [1] * len(prompt) if left else [1] * len(prompt) + mask)
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}
