"""Compiled layers give what plain ones give, with the same names; one graph serves all layers and shapes; passes that do not
train are not compiled; and where compiling fails, or never ends, the layers are computed without it, with one line.

A stand-in takes the place of inductor, whose C++ takes seconds: it runs the graphs that torch.compile found.
"""

import copy
import types

import pytest
import torch
from torch import nn
from transformers import modeling_layers

from finetune.errors import UserError
from finetune.models import compiled
from finetune.models.compiled import compile_layers

WIDTH = 8


class Layer(modeling_layers.GradientCheckpointingLayer):
    """A residual block. number: read in its forward pass, if it is given."""

    def __init__(self):
        super().__init__()
        self.inner, self.number, self.broken = nn.Linear(WIDTH, WIDTH), None, False

    def forward(self, hidden):
        if self.broken:
            raise RuntimeError("the layer's own")
        return hidden + torch.tanh(self.inner(hidden)) * (1.0 if self.number is None else self.number)


class Model(nn.Module):
    def __init__(self, layers=3):
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(layers))
        self.config = types.SimpleNamespace(model_type="toy")

    def forward(self, hidden):
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


class Inductor:
    """Counts the graphs that it is given."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, examples, **options):
        self.graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def settings():
    """compile_layers changes torch's settings for the whole process."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=8, optimize_ddp=True, specialize_float=False):
        yield
    torch._dynamo.reset()


@pytest.fixture
def pair():
    """A plain model, its compiled copy, the lines that were told, the compiler."""
    torch.manual_seed(0)
    plain, lines, inductor = Model(), [], Inductor()
    ours = copy.deepcopy(plain)
    state = compile_layers(ours, lines.append, backend=inductor)
    return types.SimpleNamespace(plain=plain, ours=ours, lines=lines, inductor=inductor, state=state)


def gradients(model, hidden):
    model.zero_grad()
    loss = model(hidden.clone().requires_grad_()).pow(2).sum()  # as behind embeddings that are trained
    loss.backward()
    return loss.detach(), [parameter.grad for parameter in model.parameters()]


def assert_same(pair, hidden):
    (loss, ours), (expected, theirs) = gradients(pair.ours, hidden), gradients(pair.plain, hidden)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours, theirs)


def test_one_graph_for_all_layers_and_shapes_and_names_stay(pair):
    assert list(pair.ours.state_dict()) == list(pair.plain.state_dict())
    assert [type(layer).__name__ for layer in pair.ours.layers] == ["Layer"] * 3
    assert all(isinstance(layer, Layer) for layer in pair.ours.layers)
    for rows, tokens in ((2, 5), (3, 7), (9, 2)):
        assert_same(pair, torch.randn(rows, tokens, WIDTH))
    assert pair.inductor.graphs == pair.state.graphs == 1 and pair.state.seconds > 0
    announced, compiled_once = pair.lines
    assert "3 Layer are compiled" in announced
    assert "compiled 1 graph of Layer for 3 layers in" in compiled_once


def test_passes_that_do_not_train_are_not_compiled(pair):
    hidden = torch.randn(2, 5, WIDTH)
    with torch.no_grad():
        assert torch.equal(pair.ours(hidden), pair.plain(hidden))
    assert torch.equal(pair.ours.eval()(hidden), pair.plain(hidden))
    assert pair.inductor.graphs == 0
    assert_same(types.SimpleNamespace(ours=pair.ours.train(), plain=pair.plain), hidden)
    assert pair.inductor.graphs == 1


def test_a_copy_computes_by_itself(pair):
    hidden = torch.randn(2, 5, WIDTH)
    again = copy.deepcopy(pair.ours)
    with torch.no_grad():
        again.layers[0].inner.bias += 1
    assert not torch.equal(gradients(again, hidden)[0], gradients(pair.ours, hidden)[0])
    assert_same(pair, hidden)


def test_hooks_run_and_activations_are_recomputed(pair):
    seen = []
    for layer in pair.ours.layers:
        layer.register_forward_pre_hook(lambda module, arguments: seen.append(module))
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = lambda function, *a, **k: torch.utils.checkpoint.checkpoint(
            function, *a, use_reentrant=False, **k
        )
    assert_same(pair, torch.randn(2, 5, WIDTH))
    assert len(seen) >= 3 and set(seen) == set(pair.ours.layers)
    assert pair.inductor.graphs == 1


def test_graphs_without_end_are_given_up_with_one_line(pair, monkeypatch):
    monkeypatch.setattr(compiled, "MOST_GRAPHS", 3)
    hidden = torch.randn(2, 5, WIDTH)
    for number in range(8):
        for layer in (*pair.ours.layers, *pair.plain.layers):
            layer.number = 1.0 + number
        assert_same(pair, hidden)
    told = [line for line in pair.lines if "not compiled from here on" in line]
    assert len(told) == 1 and "more than 3 graphs" in told[0]
    assert pair.inductor.graphs == 3 and pair.state.fallback


def test_a_compiler_that_fails_is_told_once_and_training_goes_on(pair, monkeypatch):
    def fails(graph, examples):
        raise FileNotFoundError("no g++ anywhere")

    monkeypatch.setattr(pair.state, "_backend", fails)
    assert_same(pair, torch.randn(2, 5, WIDTH))
    assert_same(pair, torch.randn(4, 3, WIDTH))
    (told,) = (line for line in pair.lines if "not compiled from here on" in line)
    assert "no g++ anywhere" in told


def test_an_error_of_the_layer_is_its_own(pair):
    pair.ours.layers[1].broken = True
    with pytest.raises(RuntimeError, match="the layer's own"):
        pair.ours(torch.randn(2, 5, WIDTH))


def test_a_model_without_such_layers_is_refused():
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(UserError, match="no repeated layers") as caught:
        compile_layers(model, print)
    assert caught.value.where == "model.compile"


def test_packed_attention_is_called_as_it_is_whatever_the_borders():
    from transformers import LlamaConfig, LlamaForCausalLM

    from finetune.models.segmented import use_segmented_attention

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    plain = LlamaForCausalLM(LlamaConfig(vocab_size=32, num_hidden_layers=2, **sizes)).train()
    use_segmented_attention(plain)
    ours, inductor = copy.deepcopy(plain), Inductor()
    state = compile_layers(ours, lambda line: None, backend=inductor)
    for lengths in ((9, 7, 3), (5, 5, 5, 5), (20,), (30, 2)):
        borders = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        inputs = {
            "input_ids": torch.randint(0, 32, (1, sum(lengths))),
            "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
            **dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), borders),
            **dict.fromkeys(("max_length_q", "max_length_k"), max(lengths)),
        }
        results = [model(**inputs, use_cache=False).logits for model in (ours, plain)]
        torch.testing.assert_close(*results)
        for result in results:
            result.pow(2).mean().backward()
    assert 1 <= inductor.graphs <= 8 and not state.fallback
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
