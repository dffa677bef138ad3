"""Float8 layers: which linear layers are converted and what is said of the others; names, weights, hooks and evaluations stay
as they are; gradients are those of plain layers to what 8 bits round; they compile; and machines that cannot are refused.

With torchao where it is installed (its emulation, and the rules of CUDA's kernel on tensors without memory), else with a
stand-in of its names and arithmetic. tests/gpu/test_float8.py runs the real products.
"""

import copy
import re
import types

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    modeling_layers,
)

from finetune.errors import UserError
from finetune.models import float8
from finetune.models.compiled import compile_layers
from finetune.models.float8 import check_float8, use_float8
from tests import float8_stand_in
from tests.float8_stand_in import SCALINGS


@pytest.fixture(autouse=True)
def torchao():
    float8_stand_in.install()
    yield
    float8_stand_in.remove()


def llama(**changes):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(**{"vocab_size": 64, "num_hidden_layers": 2, **sizes, **changes})
    return LlamaForCausalLM(config).bfloat16().train()


def converted(model, scaling="tensorwise"):
    """A float8 copy of a model, and what was said."""
    ours, lines = copy.deepcopy(model), []
    use_float8(ours, scaling, lines.append, emulate=True)
    return ours, lines


def gradients(model, rows=2, tokens=7):
    ids = torch.randint(0, 64, (rows, tokens), generator=torch.Generator().manual_seed(tokens))
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.item(), torch.cat([weight.grad.float().flatten() for weight in model.parameters()])


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize(("rows", "tokens"), [(1, 2), (1, 7), (3, 16)])
def test_gradients_are_those_of_plain_layers_to_what_eight_bits_round(scaling, rows, tokens):
    plain = llama()
    ours, _ = converted(plain, scaling)
    (loss, gradient), (exact, expected) = gradients(ours, rows, tokens), gradients(plain, rows, tokens)
    assert loss == pytest.approx(exact, rel=2e-3)
    assert 1e-3 * expected.norm() < (gradient - expected).norm() < 0.12 * expected.norm()


def test_names_weights_and_hooks_stay_and_a_copy_computes_by_itself():
    plain, seen = llama(), []
    ours = copy.deepcopy(plain)
    first = ours.model.layers[0].mlp.up_proj
    first.register_forward_hook(lambda *call: seen.append(call[0]))
    weights = dict(ours.named_parameters())
    use_float8(ours, "tensorwise", print, emulate=True)
    assert list(ours.state_dict()) == list(plain.state_dict())
    assert ours.model.layers[0].mlp.up_proj is first and all(weights[n] is w for n, w in ours.named_parameters())
    again = copy.deepcopy(ours)
    with torch.no_grad():
        again.model.layers[0].mlp.up_proj.weight.zero_()
    assert gradients(again)[0] != gradients(ours)[0]
    assert seen == [again.model.layers[0].mlp.up_proj, first]
    fresh = llama()
    fresh.load_state_dict(ours.state_dict())
    assert gradients(fresh)[0] == gradients(plain)[0]


def test_passes_that_do_not_train_are_computed_as_without():
    plain = llama()
    ours, _ = converted(plain)
    ids = torch.arange(9)[None]
    trained = ours(input_ids=ids).logits
    with torch.no_grad():
        exact = plain(input_ids=ids).logits
        assert torch.equal(ours(input_ids=ids).logits, exact)
    assert torch.equal(ours.eval()(input_ids=ids).logits, exact)
    assert not torch.equal(trained, exact)


def test_what_is_left_is_counted_with_its_reason():
    model = llama(intermediate_size=72)
    model.model.layers[0].self_attn.q_proj.weight.requires_grad_(False)
    model.model.layers[1].self_attn.k_proj.forward = lambda x: x
    model.model.layers[1].router = nn.Linear(32, 16)
    lines = []
    assert use_float8(model, "tensorwise", lines.append, emulate=True) == 6
    (line,) = lines
    assert line.startswith("model.float8: 6 linear layers (") and "tensorwise (emulated)" in line
    for part in (
        "1 frozen (first: model.layers.0.self_attn.q_proj 32x32)",
        "6 with sizes that are not multiples of 16 (first: model.layers.0.mlp.gate_proj 32x72)",
        "1 of other kinds (first: model.layers.1.self_attn.k_proj 32x16)",
        "1 routers of experts (first: model.layers.1.router 32x16)",
        "1 of the head (first: lm_head 32x64)",
    ):
        assert part in line


@pytest.mark.parametrize("tied", [True, False])
def test_heads_of_any_kind_stay(tied):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = BertForSequenceClassification(BertConfig(vocab_size=64, num_labels=16, **sizes)).train()
    _, (line,) = converted(bert)
    assert "7 linear layers" in line and "1 of the head (first: classifier 32x16)" in line  # 6 and the pooler
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2}
    seq2seq = T5ForConditionalGeneration(T5Config(vocab_size=64, tie_word_embeddings=tied, **sizes)).train()
    _, (line,) = converted(seq2seq)
    assert "16 linear layers" in line and "1 of the head (first: lm_head 32x64)" in line
    _, (line,) = converted(llama(tie_word_embeddings=tied))
    assert "14 linear layers" in line and "1 of the head (first: lm_head 32x64)" in line


def test_a_model_without_such_layers_is_refused():
    with pytest.raises(UserError, match=r"no linear layers to compute in float8 \(1 with sizes .*4x4\)") as caught:
        use_float8(nn.Sequential(nn.Linear(4, 4), nn.Conv2d(3, 3, 1)), "tensorwise", print)
    assert caught.value.where == "model.float8" and "none" in caught.value.remedy


def test_empty_inputs_and_layers_with_biases_compute():
    layers = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 16)).train()
    use_float8(layers, "tensorwise", print, emulate=True)
    assert layers(torch.zeros(0, 16)).shape == (0, 16)
    x = torch.randn(3, 16)
    expected = nn.functional.linear(nn.functional.linear(x, layers[0].weight, layers[0].bias), *layers[1].parameters())
    assert torch.allclose(layers(x), expected, atol=0.2) and layers(x).dtype == torch.float32


def test_autocast_says_what_a_layer_answers_in():
    layers = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)).train()
    use_float8(layers, "tensorwise", print, emulate=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = layers(torch.randn(3, 16))
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16 and layers[0].weight.grad.dtype == torch.float32


class Layer(modeling_layers.GradientCheckpointingLayer):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(16, 16)

    def forward(self, hidden):
        return hidden + torch.tanh(self.inner(hidden))


def test_compiled_layers_are_float8_layers():
    torch._dynamo.reset()
    torch.manual_seed(0)
    ours = nn.Sequential(Layer(), Layer()).train()
    assert use_float8(ours, "tensorwise", print, emulate=True) == 2
    both = copy.deepcopy(ours)
    state = compile_layers(both, print, backend=lambda graph, examples, **options: graph.forward)
    for rows in (7, 16, 33):
        hidden = torch.randn(2, rows, 16)
        results = [model(hidden.clone().requires_grad_()) for model in (both, ours)]
        assert torch.equal(*results)
        for result in results:
            result.pow(2).sum().backward()
    assert state.graphs == 1 and not state.fallback
    for one, other in zip(both.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    torch._dynamo.reset()


@pytest.mark.skipif(not float8_stand_in.IS_REAL, reason="pip install 'finetune[float8]'")
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("tokens", [1, 7, 16, 33])
def test_any_number_of_tokens_meets_the_rules_of_the_kernel(scaling, tokens):
    """torch checks the sizes and strides of a CUDA product for tensors without memory, too."""
    layer = nn.Linear(32, 48, device="meta", dtype=torch.bfloat16).train()
    use_float8(nn.ModuleDict({"layer": layer}), scaling, print)
    out = layer(torch.zeros(tokens, 32, device="meta", dtype=torch.bfloat16).requires_grad_())
    out.sum().backward()
    assert out.shape == (tokens, 48) and layer.weight.grad.shape == (48, 32)


@pytest.mark.parametrize(
    ("precision", "cuda", "capability", "package", "words", "remedy"),
    [
        ("fp32", True, (9, 0), True, "this training is in fp32", "training.precision: bf16"),
        ("bf16", False, (9, 0), True, "needs a GPU", "Train on a GPU"),
        ("bf16", True, (8, 0), True, r"8.9 or higher \(Ada, Hopper\), and A100 has 8.0", "model.float8: none"),
        ("bf16", True, (8, 9), False, "torchao, which is not installed", r"finetune\[float8\]"),
        ("bf16", True, (8, 9), True, "", ""),
    ],
)
def test_machines_that_cannot_are_refused(monkeypatch, precision, cuda, capability, package, words, remedy):
    monkeypatch.setattr(float8, "uses_cuda", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(name="A100"))
    monkeypatch.setattr(float8.importlib, "util", types.SimpleNamespace(find_spec=lambda name: package or None))
    if not words:
        assert check_float8(precision) is None
        return
    with pytest.raises(UserError, match=words) as caught:
        check_float8(precision)
    assert caught.value.where == "model.float8"
    assert re.search(remedy, caught.value.remedy)
