"""Our choice of tokens in the place where the manager of continuous batching keeps its logits processors.

Its own processors know nothing of single requests but a number each, drop those they do not support, and draw noise that
depends on the rest of the batch. What the manager calls is the interface of its ContinuousBatchingLogitsProcessorList.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from finetune.inference.generation.requests import Request
from finetune.inference.generation.sampler import choose_tokens


class RequestProcessors:
    """find: the request of a name, None for one that was cancelled. ended: called with the name of a request that is done
    before the manager would end it: by a text, or because it failed.

    The manager prepares a batch and computes it in the same thread, one after the other (no asynchronous batching, no CUDA
    graphs), so the requests of the batch are kept from one call to the next.
    """

    tensors_required = 0
    do_processing = True

    def __init__(self, find: Callable[[str], Request | None], ended: Callable[[str], None]) -> None:
        self._find, self._ended = find, ended
        self._names: list[str] = []

    def fill_defaults(self, storage: Tensor) -> None:
        """No numbers of requests are kept in tensors."""

    def check_kwargs(self, named: Mapping[str, Any]) -> None:
        """No request brings any."""

    def clear(self) -> None:
        """Nothing is kept between batches."""

    def prepare_tensor_args(self, requests_in_batch: Any, arg_storage: Tensor) -> Tensor:
        """The requests whose next token the batch gives, in the order of their rows of logits."""
        self._names = [one.state.request_id for one in requests_in_batch if one.has_new_token]
        return arg_storage

    def __call__(self, input_ids: Tensor, scores: Tensor, arguments: Tensor) -> Tensor:
        """scores: float32 [N or more, V]; rows after those of the requests mean nothing."""
        found = [(place, name, self._find(name)) for place, name in enumerate(self._names)]
        asked = [(place, name, request) for place, name, request in found if request is not None and not request.done]
        if not asked:
            return scores
        rows = torch.tensor([place for place, _, _ in asked], device=scores.device)
        requests = [request for _, _, request in asked]
        chosen = choose_tokens(scores.index_select(0, rows), requests)
        for _, name, request in asked:
            if request.done and not request.is_complete:
                self._ended(name)
        return scores.index_copy(0, rows, chosen)
