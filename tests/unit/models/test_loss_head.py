"""Tests that a model with a loss head gives the loss and gradients of its logits, without making logits of all tokens.

The reference is the model's own forward pass in float64 and torch's cross-entropy.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional

from benchmarks.counting import Count
from finetune.models import linear_loss, loss_head, losses
from finetune.models.logit_probe import LogitTransform, find_transform, output_head
from finetune.models.loss_head import install_loss_head

V = 48
LLAMA = {
    "vocab_size": V, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 32,
}  # fmt: skip
GPT2 = {"vocab_size": V, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32} | dict.fromkeys(
    ("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0
)
T5 = {"vocab_size": V, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
BART = {"vocab_size": V, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 32} | {
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
    "dropout": 0.0,
}  # fmt: skip
PLAIN = LogitTransform()


def _llama(**settings: Any) -> nn.Module:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA, **settings))


def _adapted(**settings: Any) -> nn.Module:
    config = LoraConfig(r=2, lora_alpha=4, task_type="CAUSAL_LM", init_lora_weights=False, **settings)
    return get_peft_model(_llama(), config)  # type: ignore[return-value]


def _marian() -> nn.Module:
    """Its bias for each token is not trained, and not a part of its head."""
    model = hf.MarianMTModel(hf.MarianConfig(**BART, pad_token_id=0, decoder_start_token_id=0))
    model.final_logits_bias.normal_()
    return model


MODELS: dict[str, tuple[Callable[[], Any], Any]] = {  # name -> (a model, what it does to its logits)
    "llama": (_llama, PLAIN),
    "llama, tied": (lambda: _llama(tie_word_embeddings=True), PLAIN),
    "gemma2, a soft cap": (
        lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**LLAMA, final_logit_softcapping=2.0, pad_token_id=0)),
        LogitTransform(cap=2.0),
    ),
    "cohere, a scale": (lambda: hf.CohereForCausalLM(hf.CohereConfig(**LLAMA)), LogitTransform(scale=0.0625)),
    "granite, a divisor": (
        lambda: hf.GraniteForCausalLM(hf.GraniteConfig(**LLAMA, logits_scaling=8.0)),
        LogitTransform(scale=0.125),
    ),
    "phi, a bias": (lambda: hf.PhiForCausalLM(hf.PhiConfig(**LLAMA)), PLAIN),
    "gpt2": (lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)), PLAIN),
    "t5, tied and scaled": (lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5)), PLAIN),
    "bart": (lambda: hf.BartForConditionalGeneration(hf.BartConfig(**BART)), PLAIN),
    "marian, another bias": (_marian, "other than a scale or a soft cap"),
    "lora": (lambda: _adapted(target_modules=["q_proj"]), PLAIN),
    "lora on the head": (lambda: _adapted(target_modules=["q_proj", "lm_head"]), PLAIN),
    "the head saved whole": (lambda: _adapted(target_modules=["q_proj"], modules_to_save=["lm_head"]), PLAIN),
}


@pytest.fixture(params=["chunks", "one chunk"])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "chunks":
        _small_chunks(monkeypatch)


def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three tokens, and blocks of six columns for eight tokens."""
    monkeypatch.setattr(loss_head, "CHUNK_BYTES", 4 * V * 3)
    monkeypatch.setattr(linear_loss, "BLOCK_BYTES", 4 * 8 * 6)
    monkeypatch.setattr(linear_loss, "_NARROWEST", 1)


def _inputs(model: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(of the model, of the loss): two rows of seven tokens, eight of which are supervised."""
    torch.manual_seed(5)
    tokens = torch.randint(3, V, (2, 7))
    inputs = {"input_ids": tokens, "use_cache": False}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.randint(3, V, (2, 7))
    positions = torch.tensor([0, 2, 3, 5, 8, 9, 12, 13])
    return inputs, {"target_positions": positions, "target_ids": torch.randint(3, V, (8,))}


def _gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: x.grad for name, x in model.named_parameters() if x.requires_grad and x.grad is not None}


def _check(model: Any, *, factor: Any = 0.37, per_token: bool = False, smoothing: float = 0.0) -> None:
    exact = copy.deepcopy(model).double()
    inputs, wanted = _inputs(model)
    rows = exact(**inputs).logits.flatten(0, 1)[wanted["target_positions"]]
    each = functional.cross_entropy(rows, wanted["target_ids"], reduction="none", label_smoothing=smoothing)
    (each * factor).sum().backward()
    install_loss_head(model)
    found = model(**inputs, **wanted, per_token=per_token, label_smoothing=smoothing)
    if per_token:
        (found["token_losses"] * factor).sum().backward()
    else:
        assert found["token_losses"] is None and found["loss_sum"].dtype == torch.float32
        (found["loss_sum"] * factor).backward()
    assert found["loss_sum"].item() == pytest.approx(each.sum().item(), rel=1e-6)
    theirs, mine = _gradients(exact), _gradients(model)
    assert mine.keys() == theirs.keys() and mine
    total = torch.stack([gradient.norm() for gradient in theirs.values()]).norm()
    for name, gradient in theirs.items():
        assert (mine[name].double() - gradient).norm() <= 2e-6 * total, name


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_those_of_the_logits(name: str, chunks: None) -> None:
    torch.manual_seed(0)
    model = MODELS[name][0]().train()
    _check(model)


@pytest.mark.parametrize(
    "name", ["llama, tied", "gemma2, a soft cap", "lora", "lora on the head", "marian, another bias"]
)
def test_losses_of_tokens_and_their_gradients(name: str, chunks: None) -> None:
    torch.manual_seed(0)
    _check(MODELS[name][0]().train(), factor=torch.linspace(-1.0, 2.0, 8), per_token=True)


@pytest.mark.parametrize("name", ["llama", "lora on the head", "t5, tied and scaled"])
def test_label_smoothing(name: str, chunks: None) -> None:
    torch.manual_seed(0)
    _check(MODELS[name][0]().train(), smoothing=0.1)


@pytest.mark.parametrize("name", MODELS)
def test_the_probe_finds_what_a_model_does_to_its_logits(name: str) -> None:
    build, wanted = MODELS[name]
    model = build()
    before = {key: vars(module).get("forward") for key, module in model.named_modules()}
    found = find_transform(model)
    assert (wanted in found) if isinstance(wanted, str) else found == wanted
    assert {key: vars(module).get("forward") for key, module in model.named_modules()} == before


@pytest.mark.parametrize("name", ["llama", "gemma2, a soft cap", "lora on the head"])
def test_logits_of_all_tokens_never_exist(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 512 tokens with a vocabulary of 4,096, logits in float32 take 8 MiB: with their gradient, two are saved."""
    monkeypatch.setitem(LLAMA, "vocab_size", 4096)
    monkeypatch.setitem(LLAMA, "max_position_embeddings", 512)
    monkeypatch.setattr(loss_head, "CHUNK_BYTES", 2**20)
    monkeypatch.setattr(linear_loss, "BLOCK_BYTES", 2**20)
    model = MODELS[name][0]().train()
    tokens = torch.randint(3, 4096, (1, 512))
    positions = torch.arange(511)
    peaks = {}
    for installed in (False, True):
        if installed:
            install_loss_head(model)
        with Count() as count:
            if installed:
                loss = model(input_ids=tokens, use_cache=False, target_ids=tokens[0, 1:], target_positions=positions)[
                    "loss_sum"
                ]
            else:
                logits = model(input_ids=tokens, use_cache=False).logits[0, :-1]
                loss = functional.cross_entropy(logits, tokens[0, 1:], reduction="sum")
                del logits
            loss.backward()
            del loss
        peaks[installed] = count.peak
        model.zero_grad(set_to_none=True)
    assert peaks[True] < peaks[False] - 2 * 8 * 2**20


def test_evaluation_gives_the_loss_of_each_token() -> None:
    model = _llama().eval()
    inputs, wanted = _inputs(model)
    with torch.no_grad():
        rows = model(**inputs).logits.flatten(0, 1)[wanted["target_positions"]]
        each = losses.cross_entropy_each(rows, wanted["target_ids"])
        install_loss_head(model)
        found = model(**inputs, **wanted)
        smoothed = model(**inputs, **wanted, label_smoothing=0.1)
        plain = model(**inputs).logits
    torch.testing.assert_close(found["token_losses"], each)
    torch.testing.assert_close(found["loss_sum"], each.sum())
    torch.testing.assert_close(smoothed["token_losses"], each)
    assert smoothed["loss_sum"] > found["loss_sum"] * 0.5 and smoothed["loss_sum"] != found["loss_sum"]
    torch.testing.assert_close(plain.flatten(0, 1)[wanted["target_positions"]], rows)


def test_a_head_that_an_engine_replaced_is_found_again() -> None:
    """DeepSpeed's tensor parallelism puts layers of its own in the place of the head."""

    class Sliced(nn.Linear):
        pass

    torch.manual_seed(0)
    model = _llama()
    inputs, wanted = _inputs(model)
    install_loss_head(model)
    before = model(**inputs, **wanted)["loss_sum"]
    other = Sliced(16, V, bias=False)
    other.weight = model.lm_head.weight
    model.lm_head = other
    torch.testing.assert_close(model(**inputs, **wanted)["loss_sum"], before)
    assert "forward" not in vars(other) and output_head(model) is other


def test_hooks_of_the_head_see_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """ZeRO-3 gathers the head's weight in such hooks, and attaches its backward pass to the tensors that it finds."""
    model = _llama()
    inputs, wanted = _inputs(model)
    install_loss_head(model)
    seen: list[Any] = []

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        seen.extend(value for value in output if torch.is_tensor(value))
        return type(output)([None if value is None else value * 2 for value in output])

    model.lm_head.register_forward_hook(after)
    doubled = model(**inputs, **wanted)["loss_sum"]
    assert len(seen) == 1 and seen[0].shape == () and doubled.item() == 2 * seen[0].item()


def test_a_model_of_another_form_is_reported_and_its_logits_are_used() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = hf.LlamaConfig(**LLAMA)
            self.body, self.head = nn.Embedding(V, 16), nn.Linear(16, V)

        def get_output_embeddings(self) -> nn.Module:
            return self.head

        def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> Any:
            hidden = self.body(input_ids)
            return hf.modeling_outputs.CausalLMOutput(logits=self.head(hidden) + self.head(hidden.square()))

    model = TwoHeads()
    inputs, wanted = _inputs(_llama())
    rows = model(**inputs).logits.flatten(0, 1)[wanted["target_positions"]]
    each = functional.cross_entropy(rows, wanted["target_ids"], reduction="sum")
    reason = install_loss_head(model)
    assert "a body and a head" in reason
    torch.testing.assert_close(model(**inputs, **wanted)["loss_sum"], each)


def test_the_loss_head_is_taken_back_after_an_error() -> None:
    model = _llama()
    install_loss_head(model)
    with pytest.raises(IndexError):
        model(input_ids=torch.full((1, 3), V + 5), target_ids=torch.tensor([1]), target_positions=torch.tensor([0]))
    assert "forward" not in vars(model.lm_head) and loss_head.output_head(model) is model.lm_head
