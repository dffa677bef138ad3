"""The next token of each request, from logits: penalties, temperature, top-k, top-p, and noise named by its row.

Both generators choose tokens here, so that they write the same.

Shapes: N requests, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from finetune.inference.answering import RowError
from finetune.inference.generation.noise import gumbel_noise, noise_key
from finetune.inference.generation.requests import Request

_ELEMENTS = 1 << 22  # of the tensors that sampling needs at a time


def choose_tokens(logits: Tensor, requests: Sequence[Request]) -> Tensor:
    """logits: float32 [N, V] -> scores [N, V] whose largest is the token of each request, which takes it. A request that is
    done already is left alone; one whose logits are not finite fails.
    """
    scores = _penalized(logits, requests)
    sampled = [place for place, request in enumerate(requests) if request.settings.samples]
    if sampled:
        scores = scores.clone() if scores is logits else scores
        step = max(1, _ELEMENTS // logits.shape[1])
        for start in range(0, len(sampled), step):
            places = sampled[start : start + step]
            scores[places] = _noisy(scores[places], [requests[place] for place in places])
    tokens = scores.argmax(dim=-1)
    chosen = logits.gather(1, tokens.unsqueeze(1)).squeeze(1)
    logprobs: list[float | None] = [None] * len(requests)
    if wanted := [place for place, request in enumerate(requests) if request.settings.logprobs]:
        values = chosen[wanted].double() - logits[wanted].double().logsumexp(dim=-1)
        for place, value in zip(wanted, values.tolist(), strict=True):
            logprobs[place] = value
    finite = torch.isfinite(chosen).tolist()
    for request, token, logprob, is_finite in zip(requests, tokens.tolist(), logprobs, finite, strict=True):
        if is_finite:
            request.take(token, logprob)
        else:
            request.fail(RowError("failed", "the logits of the model are not finite"))
    return scores


def _penalized(logits: Tensor, requests: Sequence[Request]) -> Tensor:
    """As transformers' RepetitionPenaltyLogitsProcessor (Keskar et al. 2019), which counts the prompt as well; of all requests
    at once, as each copy to a GPU makes the host wait for it.
    """
    asked = [place for place, request in enumerate(requests) if request.settings.repetition_penalty != 1.0]
    if not asked:
        return logits
    seen = [requests[place].seen_tokens() for place in asked]
    counts = [len(tokens) for tokens in seen]
    places = np.stack([np.repeat(asked, counts), np.concatenate(seen)])
    penalties = np.repeat([requests[place].settings.repetition_penalty for place in asked], counts)
    rows, tokens = torch.from_numpy(places).to(logits.device)
    penalty = torch.from_numpy(penalties).to(logits.device, logits.dtype)
    values = logits[rows, tokens]
    return logits.index_put((rows, tokens), torch.where(values < 0, values * penalty, values / penalty))


def _noisy(scores: Tensor, requests: Sequence[Request]) -> Tensor:
    """Scores plus noise, -inf where a token is cut off by top_k or top_p."""
    settings = [request.settings for request in requests]
    scaled = scores / torch.tensor([[one.temperature] for one in settings], device=scores.device)
    if any(one.top_k or one.top_p < 1 for one in settings):
        scaled = _cut_off(scaled, [one.top_k or scores.shape[1] for one in settings], [one.top_p for one in settings])
    names = [
        noise_key(one.seed, request.row, len(request.tokens)) for one, request in zip(settings, requests, strict=True)
    ]
    ids = torch.arange(scores.shape[1], device=scores.device).unsqueeze(0)
    return scaled + gumbel_noise(torch.tensor(names, device=scores.device), ids)


def _cut_off(scores: Tensor, top_k: Sequence[int], top_p: Sequence[float]) -> Tensor:
    """First the `top_k` likeliest, of these the likeliest that have a probability of `top_p` together, at least one."""
    ordered, order = scores.sort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(scores.shape[1], device=scores.device)
    ordered = ordered.masked_fill(ranks >= torch.tensor(top_k, device=scores.device).unsqueeze(1), float("-inf"))
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    share = torch.tensor([one if one < 1 else 2.0 for one in top_p], device=scores.device, dtype=scores.dtype)
    cut = before >= share.unsqueeze(1)
    cut[:, 0] = False
    return torch.full_like(scores, float("-inf")).scatter(1, order, ordered.masked_fill(cut, float("-inf")))
