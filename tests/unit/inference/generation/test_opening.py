"""Tests that a model or a setting that continuous batching does not take is given to `generate`, which says so."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf

from finetune.inference.answering import RowError
from finetune.inference.generation import opening
from finetune.inference.generation.continuous import _cast_states
from finetune.inference.generation.opening import default_penalty, open_generator
from finetune.inference.generation.static import StaticGenerator
from tests.unit.inference.generation.models import V, artifacts, llama
from tests.unit.inference.generation.test_continuous import PROMPTS, Failing, answers, generated


def opened(model: Any, **options: Any) -> tuple[Any, str]:
    said: list[str] = []
    generator = open_generator(artifacts(), model, notify=said.append, **options)
    assert len(said) == 1
    return generator, said[0]


def test_beams_fall_back_to_generate_and_say_so() -> None:
    model = llama()
    expected = [generated(model, prompt, num_beams=3) for prompt in PROMPTS]
    generator, said = opened(model, beams=3)
    try:
        assert generator.method == "generate" and "beam search" in generator.why and generator.why in said
        found = answers(generator, PROMPTS, beams=3)
    finally:
        generator.close()
    assert [list(one.tokens) for one in found] == expected
    assert expected != [generated(model, prompt) for prompt in PROMPTS]


def t5() -> Any:
    torch.manual_seed(3)
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
    config = hf.T5Config(
        vocab_size=V, **shape, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, initializer_factor=3.0
    )
    return hf.T5ForConditionalGeneration(config).eval()


@pytest.mark.parametrize("beams", [1, 3])
def test_an_encoder_decoder_model_writes_by_generate(beams: int) -> None:
    model = t5()
    expected = []
    for prompt in PROMPTS:
        made = model.generate(
            torch.tensor([prompt]), max_new_tokens=12, num_beams=beams, do_sample=False, decoder_start_token_id=0
        )[0, 1:].tolist()
        expected.append(made[: made.index(1) + 1] if 1 in made else made)
    generator, said = opened(model, beams=beams)
    try:
        assert "encoder-decoder" in said
        found = answers(generator, PROMPTS, beams=beams, new_tokens=12)
    finally:
        generator.close()
    assert [list(one.tokens) for one in found] == expected


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (
            lambda: hf.MambaForCausalLM(hf.MambaConfig(vocab_size=V, hidden_size=16, num_hidden_layers=1)),
            "layers of the kind",
        ),
        (lambda: with_generation(llama(), no_repeat_ngram_size=2), "no_repeat_ngram_size"),
        (lambda: with_map(llama()), "several devices"),
    ],
)
def test_obstacles_are_named(model: Any, reason: str) -> None:
    generator, said = opened(model().eval())
    generator.close()
    assert isinstance(generator, StaticGenerator) and reason in said


def with_generation(model: Any, **settings: Any) -> Any:
    model.generation_config.update(**settings)
    return model


def with_map(model: Any) -> Any:
    model.hf_device_map = {"model": 0, "lm_head": 1}
    return model


def test_wrong_tokens_are_noticed_before_the_first_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "token_logprobs", lambda model, prompt, tokens: [-0.5] * len(tokens))
    model = llama()
    expected = [generated(model, prompt) for prompt in PROMPTS]
    generator, said = opened(model)
    try:
        assert "log-probabilities differ" in said
        assert [list(one.tokens) for one in answers(generator, PROMPTS)] == expected
    finally:
        generator.close()


def test_a_model_that_fails_under_continuous_batching_is_noticed() -> None:
    model = llama()
    ordinary = model.forward

    def forward(*arguments: Any, **named: Any) -> Any:
        if named.keys() - {"input_ids", "use_cache"}:  # not the forward pass that it is compared with
            raise ValueError("no such cache")
        return ordinary(*arguments, **named)

    forward.__signature__ = inspect.signature(ordinary)  # type: ignore[attr-defined]
    model.forward = forward
    generator, said = opened(model)
    generator.close()
    assert "no such cache" in said


def test_weights_in_float32_write_under_autocast() -> None:
    model = llama()
    generator, said = opened(model, autocast=torch.bfloat16)
    try:
        assert "generation: continuous batching" in said
        found = answers(generator, PROMPTS, logprobs=True)
        assert all(isinstance(one.finish_reason, str) for one in found)
        with generator.exclusively():
            half = opening.token_logprobs(model, PROMPTS[7], found[7].tokens)
        assert found[7].logprobs == pytest.approx(half, abs=0.2)
    finally:
        generator.close()
    whole = opening.token_logprobs(model, PROMPTS[7], found[7].tokens)
    assert half != pytest.approx(whole, abs=1e-5)  # it was another precision


def test_states_are_cast_however_a_version_of_transformers_passes_them() -> None:
    """By keyword from its attention until 5.23, by position from the model from 5.24 on."""
    seen = []

    def update(key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, **named: object) -> None:
        seen.append((key_states.dtype, value_states.dtype, layer_idx, named))

    cache = SimpleNamespace(dtype=torch.float32, update=update)
    _cast_states(cache)
    state = torch.zeros(1, 1, 2, 4, dtype=torch.bfloat16)
    cache.update(state, state, 3, kwargs={})
    cache.update(key_states=state, value_states=state, layer_idx=3, kwargs={})
    assert seen == [(torch.float32, torch.float32, 3, {"kwargs": {}})] * 2


def test_both_generators_draw_the_same_text_in_any_batch() -> None:
    model = llama()
    settings = {"temperature": 1.2, "top_p": 0.95, "seed": 4, "new_tokens": 20}
    continuous, _ = opened(model)
    texts = [one.text for one in answers(continuous, PROMPTS, **settings)]
    few = [
        continuous.submit(PROMPTS[row], opening.GenerationSettings(**settings), row=row).wait(60).text for row in (3, 8)
    ]
    other = [one.text for one in answers(continuous, PROMPTS, **{**settings, "seed": 5})]
    continuous.close()
    model.hf_device_map = {"model": 0, "lm_head": 1}
    static, _ = opened(model)
    again = [one.text for one in answers(static, PROMPTS, **settings)]
    static.close()
    assert again == texts
    assert few == [texts[3], texts[8]]
    assert other != texts


def test_a_request_that_fails_in_generate_ends_only_itself() -> None:
    model = with_map(llama())
    generator, _ = opened(model)
    Failing(model, lambda ids: bool((ids == 63).any()) and ids.shape[1] > 1, ValueError("an odd token"))
    found = answers(generator, [*PROMPTS[:9], [5, 63], [], *PROMPTS[9:]])
    generator.close()
    kinds = [one.kind if isinstance(one, RowError) else "" for one in found]
    assert kinds == [""] * 9 + ["failed", "empty"] + [""] * 11


def test_the_models_own_penalty_is_the_default() -> None:
    assert default_penalty(llama()) == 1.0
    assert default_penalty(with_generation(llama(), repetition_penalty=1.3)) == 1.3
