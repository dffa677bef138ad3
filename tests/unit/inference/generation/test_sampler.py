"""Tests that sampling draws from the distribution it names, and that its noise depends on (seed, row, position) alone.

References: transformers' own temperature, top-k, top-p and repetition-penalty processors, and softmax frequencies.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from torch.utils._python_dispatch import TorchDispatchMode

from finetune.errors import UserError
from finetune.inference.answering import RowError
from finetune.inference.generation.noise import gumbel_noise, noise_key
from finetune.inference.generation.prompts import PromptRules
from finetune.inference.generation.requests import GenerationSettings, Request
from finetune.inference.generation.sampler import choose_tokens
from tests.unit.inference.generation.models import V, letters

RULES = PromptRules(letters(), V, frozenset({1}))


def request(row: int, prompt: tuple[int, ...] = (5, 6), **settings: Any) -> Request:
    asked = GenerationSettings(**{"new_tokens": 8, **settings})
    return RULES.request(list(prompt), asked, row, streams=False, notify=None)


def test_frequencies_are_those_of_the_softmax() -> None:
    torch.manual_seed(0)
    logits, draws = torch.randn(V) * 1.5, 20_000
    requests = [request(row, temperature=0.7) for row in range(draws)]
    choose_tokens(logits.expand(draws, V), requests)
    found = torch.bincount(torch.tensor([one.tokens[0] for one in requests]), minlength=V).double()
    expected = (logits.double() / 0.7).softmax(0) * draws
    kept = expected > 5
    chi_squared = float(((found - expected)[kept] ** 2 / expected[kept]).sum())
    degrees = int(kept.sum())
    assert degrees > 30
    assert chi_squared < degrees + 4 * (2 * degrees) ** 0.5


def test_noise_is_uniform_and_independent_over_tokens_rows_and_positions() -> None:
    keys = torch.tensor([noise_key(0, row, position) for row in range(50) for position in range(20)])
    noise = gumbel_noise(keys, torch.arange(200).unsqueeze(0)).double()
    uniform = torch.exp(-torch.exp(-noise))
    assert abs(float(uniform.mean()) - 0.5) < 0.005
    assert abs(float(uniform.var()) - 1 / 12) < 0.002
    for rows in (uniform, uniform.T):  # neighbors do not follow each other
        assert abs(float(torch.corrcoef(torch.stack([rows[:-1].flatten(), rows[1:].flatten()]))[0, 1])) < 0.01
    assert len({noise_key(0, row, position) for row in range(300) for position in range(300)}) == 90_000
    assert noise_key(0, 1, 2) != noise_key(1, 1, 2) != noise_key(0, 2, 1)


@pytest.mark.parametrize(
    "settings", [{"top_k": 5}, {"top_p": 0.6}, {"top_k": 9, "top_p": 0.8}, {"top_p": 1e-6}, {"top_k": 1000}], ids=str
)
def test_tokens_cut_off_are_those_of_transformers(settings: dict[str, Any]) -> None:
    torch.manual_seed(1)
    logits = torch.randn(3, V) * 2
    expected = hf.TemperatureLogitsWarper(0.8)(None, logits)  # type: ignore[arg-type]
    if "top_k" in settings:
        expected = hf.TopKLogitsWarper(settings["top_k"])(None, expected)  # type: ignore[arg-type]
    if "top_p" in settings:
        expected = hf.TopPLogitsWarper(settings["top_p"])(None, expected)  # type: ignore[arg-type]
    scores = choose_tokens(logits, [request(row, temperature=0.8, **settings) for row in range(3)])
    assert torch.equal(torch.isfinite(scores), torch.isfinite(expected))


def test_a_penalty_is_that_of_transformers() -> None:
    torch.manual_seed(1)
    logits = torch.randn(2, V)
    prompts = [(5, 6, 6), (9, 8, 7)]
    expected = hf.RepetitionPenaltyLogitsProcessor(1.5)(torch.tensor(prompts), logits.clone())
    before = logits.clone()
    scores = choose_tokens(logits, [request(0, prompt, repetition_penalty=1.5) for prompt in prompts])
    assert torch.equal(scores, expected)
    assert torch.equal(logits, before)


def test_a_row_draws_the_same_beside_any_others() -> None:
    torch.manual_seed(2)
    logits = torch.randn(6, V)
    kinds: list[dict[str, Any]] = [{"temperature": 1.0}, {}, {"temperature": 0.5, "top_p": 0.9}, {"top_k": 3}]
    together = [request(row, **kinds[row % 4]) for row in range(6)]
    choose_tokens(logits, together)
    for row in range(6):
        alone = request(row, **kinds[row % 4])
        choose_tokens(logits[row : row + 1], [alone])
        assert alone.tokens == together[row].tokens
    drawn = {request_of_seed(seed, logits[:1]) for seed in range(40)}
    assert len(drawn) > 8


def request_of_seed(seed: int, logits: torch.Tensor) -> int:
    one = request(0, temperature=1.0, seed=seed)
    choose_tokens(logits, [one])
    return one.tokens[0]


def test_logits_that_are_not_finite_fail_their_request_alone() -> None:
    logits = torch.zeros(3, V)
    logits[1] = float("nan")
    requests = [request(row, temperature=float(row == 2)) for row in range(3)]
    choose_tokens(logits, requests)
    assert isinstance(requests[1].outcome, RowError)
    assert len(requests[0].tokens) == len(requests[2].tokens) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"new_tokens": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.1},
        {"top_k": -1}, {"repetition_penalty": 0.0}, {"beams": 0}, {"beams": 10**9}, {"stops": ("",)}, {"seed": -1},
        {"beams": 2, "temperature": 1.0}, {"beams": 2, "logprobs": True},
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        GenerationSettings(**{"new_tokens": 4, **settings})
    assert caught.value.where.startswith("--") and caught.value.remedy.endswith(".")


class CountCalls(TorchDispatchMode):
    """Operators that a device would be given."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_penalties_of_many_requests_cost_no_more_calls_than_those_of_one() -> None:
    """On a GPU, each copy of a request's tokens to it makes the host wait, for every token that is written."""

    def calls(requests: int) -> int:
        asked = [request(row, (row + 2, 5, 5, 7), repetition_penalty=1.1 + row / 10) for row in range(requests)]
        with CountCalls() as counted:
            choose_tokens(torch.randn(requests, V), asked)
            choose_tokens(torch.randn(requests, V), asked)
        assert all(len(one.seen_tokens()) == len({*one.prompt, *one.tokens}) for one in asked)
        return counted.count

    assert calls(9) == calls(1)
