"""Continuous batching: transformers' own manager, kept for the life of the model, behind the interface of a TextGenerator.

A request that ends makes room for the next at once. What the manager leaves to its caller is done here: prompts are
checked before it sees them; tokens are chosen by `sampler.py`; if a forward pass fails, which ends all requests in flight,
a new manager takes them again in halves, down to the one that fails alone; where memory runs out, in half as much memory.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from finetune.errors import TrainingFailed
from finetune.inference.answering import RowError
from finetune.inference.generation.cache_size import CacheSize, is_out_of_memory
from finetune.inference.generation.generator import TextGenerator
from finetune.inference.generation.model_gate import ModelGate
from finetune.inference.generation.processors import RequestProcessors
from finetune.inference.generation.prompts import PromptRules
from finetune.inference.generation.requests import GenerationSettings, Request

_POLL_SECONDS = 0.1
_CLOSE_SECONDS = 30.0


class ContinuousGenerator(TextGenerator):
    """model: a transformers causal language model (that of an adapter: its base, with the adapter inside).

    rules: see PromptRules. size: of the cache. autocast: see AskedModel.
    """

    method, why = "continuous batching", ""

    def __init__(self, model: Any, rules: PromptRules, size: CacheSize, autocast: torch.dtype | None = None) -> None:
        self.rules, self.size = rules, size
        self._model = model
        self._attention, self._was_training = model.config._attn_implementation, model.training
        self._gate, self._casts = ModelGate(model, autocast), autocast is not None
        self._lock = threading.RLock()  # of everything below
        self._names = itertools.count()
        self._live: dict[str, Request] = {}  # in the manager
        self._parts: deque[list[Request]] = deque()  # taken one after the other, to find one that fails
        self._waiting: list[Request] = []  # until the parts are through
        self._error = ""  # of the manager, for a request that it ended
        self._failed: TrainingFailed | None = None
        self._closing = self._closed = False
        try:
            self._manager = self._make_manager()
        except BaseException:
            self._restore_model()
            raise
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._collect, name="generation", daemon=True)
        self._thread.start()
        self._started.wait()

    @property
    def slots(self) -> int:
        """Requests that are written at the same time."""
        return self.size.slots

    def submit(
        self,
        prompt: Sequence[int],
        settings: GenerationSettings,
        *,
        row: int = 0,
        streams: bool = False,
        notify: Callable[[Request], None] | None = None,
    ) -> Request:
        """See TextGenerator. A beam search needs the other generator. Raises: TrainingFailed, ValueError."""
        if settings.beams > 1:
            raise ValueError("continuous batching has no beam search")
        request = self.rules.request(prompt, settings, row, streams, notify)
        with self._lock:
            if self._failed is not None:
                raise self._failed
            if self._closing:
                raise RuntimeError("the generator is closed")
            if request.done:
                return request
            if self._parts or self._waiting:
                self._waiting.append(request)
            else:
                self._give(request)
        return request

    def cancel(self, request: Request) -> None:
        """See TextGenerator."""
        request.cancel()
        with self._lock:
            for name in [name for name, one in self._live.items() if one is request]:
                self._drop(name)

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """See TextGenerator. The model has its own attention meanwhile."""
        with self._gate.held():
            paged = self._model.config._attn_implementation
            self._model.set_attn_implementation(self._attention)
            try:
                yield
            finally:
                self._model.set_attn_implementation(paged)

    def close(self) -> None:
        """See TextGenerator."""
        with self._lock:
            if self._closed:
                return
            self._closing = self._closed = True
        self._thread.join(_CLOSE_SECONDS)
        self._stop_manager()
        self._restore_model()
        for request in self._unfinished():
            request.cancel()

    def _restore_model(self) -> None:
        self._gate.remove()
        self._model.set_attn_implementation(self._attention)
        self._model.train(self._was_training)

    def _unfinished(self) -> list[Request]:
        with self._lock:
            everything = [*self._live.values(), *itertools.chain(*self._parts), *self._waiting]
        return [request for request in everything if not request.done]

    def _make_manager(self) -> Any:
        logging.getLogger("ContinuousBatchingLogger").setLevel(
            logging.CRITICAL
        )  # errors are reported with each request
        if "flash" not in self._attention:  # the manager knows its own names of attentions alone
            self._model.set_attn_implementation("eager" if "eager" in self._attention else "sdpa")
        manager = self._model.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=False, max_new_tokens=1, eos_token_id=-1, pad_token_id=0),
            continuous_batching_config=_manager_config(self.size),
        )
        manager.logit_processor = RequestProcessors(self._live.get, self._drop)
        if self._casts:
            manager.warmup()  # makes the cache
            _cast_states(manager.batch_processor.cache)
        return manager

    def _stop_manager(self) -> None:
        self._manager.stop(block=True, timeout=_CLOSE_SECONDS, hard_stop=True)

    def _give(self, request: Request) -> None:
        """To the manager. A request that was begun goes on with what it has written."""
        name = str(next(self._names))
        self._live[name] = request
        self._manager.add_request(
            request.prompt + request.tokens,
            request_id=name,
            max_new_tokens=request.limit - len(request.tokens),
            eos_token_id=sorted(request.stop_tokens),
        )

    def _drop(self, name: str) -> None:
        """The manager need not go on with a request."""
        with self._lock:
            if self._live.pop(name, None) is not None:
                self._manager.cancel_request(name)

    def _collect(self) -> None:
        """The thread of the generator. The manager's own thread is started here, so that it is a daemon as this one is."""
        try:
            self._manager.start()
            self._started.set()
            while not self._closing:
                result = self._manager.get_result(timeout=_POLL_SECONDS)
                with self._lock:
                    if result is not None:
                        self._settle(result)
                    elif not self._manager.is_running() and not self._closing:
                        self._recover()
                    if not self._live:
                        self._give_next()
        except Exception as error:  # whoever waits must not wait forever
            with self._lock:
                self._failed = TrainingFailed(f"the text generator stopped: {type(error).__name__}: {error}")
            for request in self._unfinished():
                request.fail(RowError("failed", self._failed.what))
            raise
        finally:
            self._started.set()

    def _settle(self, result: Any) -> None:
        if result.error:
            self._error = str(result.error)  # its request stays, for `_recover`
        elif (request := self._live.get(result.request_id)) is not None:
            del self._live[result.request_id]
            if not request.done:
                request.fail(RowError("failed", "continuous batching ended it before its last token"))

    def _give_next(self) -> None:
        if self._parts:
            part = self._parts.popleft()
        else:
            part, self._waiting = self._waiting, []
        for request in part:
            if not request.done:
                self._give(request)

    def _recover(self) -> None:
        """After the manager's thread has ended by an error: a new manager, and everything that was in flight again."""
        error = self._error or "the manager of continuous batching ended"
        rest = [request for request in self._live.values() if not request.done]
        self._live.clear()
        self._error = ""
        if (broken := _broken_device(self._model.device)) is not None:
            self._failed = TrainingFailed(f"the GPU no longer works: {broken}", remedy="Run the same command again.")
            for request in [*rest, *self._unfinished()]:
                request.fail(RowError("failed", self._failed.what))
            self._closing = True
            return
        out_of_memory = is_out_of_memory(error)
        can_shrink = out_of_memory and self.size.slots > 1
        if can_shrink:
            self.size = self.size.halved()
            self._shrink_rules()
        if len(rest) == 1 and not can_shrink:
            rest[0].fail(RowError("out_of_memory" if out_of_memory else "failed", error))
        elif can_shrink:
            self._parts.appendleft(rest)
        elif rest:
            half = len(rest) // 2
            self._parts.extendleft([rest[half:], rest[:half]])
        self._stop_manager()
        self._manager = self._make_manager()
        self._manager.start()

    def _shrink_rules(self) -> None:
        most = min(self.rules.most, self.size.tokens) if self.rules.most else self.size.tokens
        self.rules = dataclasses.replace(self.rules, most=most)


def _manager_config(size: CacheSize) -> ContinuousBatchingConfig:
    """Synchronous: `RequestProcessors` needs it. Pages are called blocks before transformers 5.18."""
    names = {field.name for field in dataclasses.fields(ContinuousBatchingConfig)}
    settings: dict[str, Any] = {"page_size" if "page_size" in names else "block_size": size.page}
    if "auto_switch_to_flash" in names:
        settings["auto_switch_to_flash"] = False  # it would load kernels from the hub
    return ContinuousBatchingConfig(
        num_blocks=size.blocks,
        max_batch_tokens=size.batch_tokens,
        max_requests_per_batch=size.slots,
        max_memory_percent=0.95,
        max_blocks_per_request=0,
        use_async_batching=False,
        use_cuda_graph=False,
        disable_nccl_graph_mixing=False,
        **settings,
    )


def _cast_states(cache: Any) -> None:
    """Keys and values into the cache's own dtype, which is that of the weights: autocast computes them in another."""
    update, dtype = cache.update, cache.dtype

    def cast_and_update(key_states: Tensor, value_states: Tensor, *others: Any, **named: Any) -> Any:
        return update(key_states.to(dtype), value_states.to(dtype), *others, **named)

    cache.update = cast_and_update


def _broken_device(device: torch.device) -> str | None:
    """The error of a GPU that answers every call with one; None for a device that works."""
    if device.type != "cuda":
        return None
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return None
