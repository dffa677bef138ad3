"""Tests that continuous batching writes the tokens of `generate`, and that a request that fails ends only itself.

The reference is `model.generate` of one prompt at a time, and a forward pass of prompt and reply.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import peft
import pytest
import torch
import transformers as hf

from finetune.inference.answering import RowError
from finetune.inference.generation.cache_size import choose_cache_size
from finetune.inference.generation.continuous import ContinuousGenerator
from finetune.inference.generation.opening import open_generator, token_logprobs
from finetune.inference.generation.requests import GenerationSettings, Reply, Request
from finetune.models.loss_head import install_loss_head
from finetune.models.segmented import use_segmented_attention
from tests.unit.inference.generation.models import END, LLAMA, V, artifacts, llama

PROMPTS = [[3 + place, 7, 9, 11 + place, 40][: 1 + place % 5] for place in range(20)]
STOPS = [1, 2]


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def generated(model: Any, prompt: Sequence[int], **options: Any) -> list[int]:
    """The tokens of `generate`."""
    ids = torch.tensor([prompt])
    settings = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": STOPS, "pad_token_id": 0, **options}
    made = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, len(prompt) :].tolist()
    ends = [place for place, token in enumerate(made) if token in STOPS]
    return made[: ends[0] + 1] if ends else made


def answers(generator: Any, prompts: Sequence[Sequence[int]], **settings: Any) -> list[Any]:
    asked = GenerationSettings(**{"new_tokens": 16, **settings})
    requests = [generator.submit(prompt, asked, row=row) for row, prompt in enumerate(prompts)]
    return [request.wait(60) for request in requests]


def as_trained(model: Any) -> Any:
    """As Task.build makes it: attention for concatenated rows, and the loss in the forward pass."""
    use_segmented_attention(model)
    install_loss_head(model)
    return model


def with_adapter() -> Any:
    torch.manual_seed(5)
    bare = llama()
    use_segmented_attention(bare)
    config = peft.LoraConfig(r=4, task_type="CAUSAL_LM", init_lora_weights=False, target_modules="all-linear")
    model = peft.get_peft_model(bare, config)
    install_loss_head(model)  # type: ignore[arg-type]
    return model.eval()


def gpt2() -> Any:
    torch.manual_seed(3)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 96, "initializer_range": 0.6}
    config = hf.GPT2Config(vocab_size=V, **shape, bos_token_id=0, eos_token_id=END, tie_word_embeddings=False)
    model = hf.GPT2LMHeadModel(config).eval()
    model.lm_head.weight.data[END] *= 3  # some replies end
    return model


def sliding() -> Any:
    torch.manual_seed(3)
    return hf.MistralForCausalLM(hf.MistralConfig(**LLAMA, sliding_window=4, pad_token_id=0)).eval()


MODELS: dict[str, Callable[[], Any]] = {
    "llama": llama,
    "llama as it is trained": lambda: as_trained(llama()),
    "llama, eager": lambda: llama(attn_implementation="eager"),
    "adapter, unmerged": with_adapter,
    "gpt2, learned positions": gpt2,
    "mistral, sliding window": sliding,
}


@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_are_those_of_generate(name: str) -> None:
    model = MODELS[name]()
    expected = [generated(model, prompt) for prompt in PROMPTS]
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    attention, named = base.config._attn_implementation, dict(base.__dict__)
    generator = open_generator(artifacts(), model)
    try:
        assert (generator.method, generator.why) == ("continuous batching", "")
        found = answers(generator, PROMPTS)
    finally:
        generator.close()
    assert [list(one.tokens) for one in found] == expected
    assert len({len(one) for one in expected}) > 1  # lengths differ, so sequences ended beside others
    assert all((one.finish_reason == "stop") == (one.tokens[-1] in STOPS) for one in found)
    assert base.config._attn_implementation == attention
    assert dict(base.__dict__) == named and not base._forward_pre_hooks.keys() - named["_forward_pre_hooks"].keys()


def test_a_model_in_training_mode_is_back_in_it() -> None:
    model = llama().train()
    generator = open_generator(artifacts(), model)
    assert not model.training
    generator.close()
    generator.close()
    assert model.training


@pytest.fixture(scope="module")
def model() -> Any:
    return llama()


@pytest.fixture
def generator(model: Any) -> Iterator[Any]:
    opened = open_generator(artifacts(), model)
    assert opened.method == "continuous batching"
    yield opened
    opened.close()


def test_logprobs_are_those_of_a_forward_pass(model: Any, generator: Any) -> None:
    found = answers(generator, PROMPTS, logprobs=True)
    sampled = answers(generator, PROMPTS, logprobs=True, temperature=2.0)
    with generator.exclusively():
        for prompt, reply in [*zip(PROMPTS, found, strict=True), *zip(PROMPTS, sampled, strict=True)]:
            assert len(reply.logprobs) == len(reply.tokens)
            assert reply.logprobs == pytest.approx(token_logprobs(model, prompt, reply.tokens), abs=1e-4)
    assert [one.tokens for one in found] != [one.tokens for one in sampled]
    assert answers(generator, PROMPTS[:1])[0].logprobs == ()


def test_a_repetition_penalty_is_that_of_generate(model: Any, generator: Any) -> None:
    with generator.exclusively():
        expected = [generated(model, prompt, repetition_penalty=1.7) for prompt in PROMPTS]
        plain = [generated(model, prompt) for prompt in PROMPTS]
    assert [list(one.tokens) for one in answers(generator, PROMPTS, repetition_penalty=1.7)] == expected
    assert expected != plain


def test_bad_prompts_are_known_before_the_model_sees_them(generator: Any) -> None:
    prompts = [[], [5] * 96, [5] * 200, [V], [-1], [5, 6]]
    found = answers(generator, prompts)
    kinds = [one.kind if isinstance(one, RowError) else one.finish_reason for one in found]
    assert kinds[:5] == ["empty", "too_long", "too_long", "bad_row", "bad_row"]
    assert isinstance(found[5], Reply)
    assert "200 tokens" in found[2].message and "96" in found[2].message
    assert str(V) in found[3].message


def test_a_reply_is_cut_at_the_length_of_the_model(generator: Any) -> None:
    (reply,) = answers(generator, [[5] * 94])
    assert len(reply.tokens) <= 2
    assert reply.finish_reason == "length" or reply.tokens[-1] in STOPS


def test_text_stops_end_a_reply(generator: Any) -> None:
    (whole,) = answers(generator, [[7, 9]], new_tokens=40, temperature=1.0, seed=2)
    assert len(whole.text) > 6
    stop = whole.text[3:5]
    before = whole.text[: whole.text.index(stop)]
    (found,) = answers(generator, [[7, 9]], new_tokens=40, temperature=1.0, seed=2, stops=("never seen", stop))
    assert (found.text, found.finish_reason) == (before, "stop")
    assert len(found.tokens) < len(whole.tokens)
    special = answers(generator, PROMPTS, stops=("<pad>",))
    assert all(0 not in one.tokens[:-1] for one in special)


def test_pieces_of_a_stream_are_the_text(generator: Any) -> None:
    calls: list[Request] = []
    settings = GenerationSettings(new_tokens=30, temperature=1.0, seed=2)
    request = generator.submit([7, 9], settings, streams=True, notify=calls.append)
    pieces = list(request.pieces())
    reply = request.wait(60)
    assert "".join(pieces) == reply.text and len(pieces) > 5
    assert len(calls) == len(pieces) + 1
    (plain,) = answers(generator, [[7, 9]], new_tokens=30, temperature=1.0, seed=2)
    assert plain.text == reply.text


def test_a_cancelled_request_keeps_what_it_has(generator: Any) -> None:
    settings = GenerationSettings(new_tokens=90, temperature=1.0, repetition_penalty=0.9)
    others = [generator.submit(prompt, GenerationSettings(new_tokens=16)) for prompt in PROMPTS[:4]]
    request = generator.submit([7, 9], settings, streams=True)
    next(request.pieces())
    generator.cancel(request)
    reply = request.wait(1)
    assert isinstance(reply, Reply) and reply.finish_reason in ("cancelled", "stop")
    assert all(isinstance(one.wait(60), Reply) for one in others)


class Failing:
    """A model whose forward pass fails where `is_bad(input ids)`."""

    def __init__(self, model: Any, is_bad: Callable[[torch.Tensor], bool], error: Exception) -> None:
        self.forward, self.is_bad, self.error, self.failures = model.forward, is_bad, error, 0

        def forward(*arguments: Any, **named: Any) -> Any:
            if self.is_bad(named["input_ids"]):
                self.failures += 1
                raise self.error
            return self.forward(*arguments, **named)

        forward.__signature__ = __import__("inspect").signature(model.forward)  # type: ignore[attr-defined]
        model.forward = forward


def test_a_request_that_fails_ends_only_itself() -> None:
    model = llama()
    expected = [generated(model, prompt) for prompt in PROMPTS]
    good = [place for place, tokens in enumerate(expected) if 63 not in tokens[:-1]]
    generator = open_generator(artifacts(), model)
    failing = Failing(model, lambda ids: bool((ids == 63).any()), ValueError("an odd token"))
    try:
        found = answers(generator, [*PROMPTS[:9], [5, 63], *PROMPTS[9:]])
        after = answers(generator, [PROMPTS[place] for place in good])
    finally:
        generator.close()
    assert failing.failures > 1
    error = found.pop(9)
    assert isinstance(error, RowError) and error.kind == "failed" and "an odd token" in error.message
    assert len(good) > 15
    for place, again in zip(good, after, strict=True):
        assert list(found[place].tokens) == list(again.tokens) == expected[place]


def test_out_of_memory_leads_to_smaller_batches() -> None:
    model = llama()
    expected = [generated(model, prompt) for prompt in PROMPTS]
    generator = open_generator(artifacts(), model)
    error = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    failing = Failing(model, lambda ids: ids.shape[1] > 8, error)
    try:
        slots = generator.slots
        found = answers(generator, PROMPTS)
        assert generator.slots < slots
    finally:
        generator.close()
    assert failing.failures > 0
    assert [list(one.tokens) for one in found] == expected


def test_memory_of_the_cache_is_bounded(model: Any) -> None:
    config = model.config
    for memory in (10**6, 10**7, 10**9):
        size = choose_cache_size(config, torch.float32, torch.device("cpu"), 96, memory=memory)
        kept = 2 * size.tokens * 2 * 2 * 8 * 4  # keys and values, layers, heads, head size, bytes
        assert kept <= memory
    assert size.tokens <= (96 + 32) * size.slots + 64
    opened = open_generator(artifacts(), model, memory=300_000)
    try:
        tokens = opened.size.tokens  # type: ignore[attr-defined]
        assert tokens < 96
        found = answers(opened, [[5] * tokens, [5, 6]])
    finally:
        opened.close()
    assert isinstance(found[0], RowError) and found[0].kind == "too_long" and "memory" in found[0].message
    assert isinstance(found[1], Reply)


def test_more_requests_than_the_cache_holds_wait(model: Any) -> None:
    expected = [generated(model, prompt) for prompt in PROMPTS]
    opened = open_generator(artifacts(), model, memory=450_000)
    assert isinstance(opened, ContinuousGenerator)
    try:
        assert opened.size.tokens < 20 * 20
        assert [list(one.tokens) for one in answers(opened, PROMPTS)] == expected
    finally:
        opened.close()
