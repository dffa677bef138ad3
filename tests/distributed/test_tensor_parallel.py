"""Matrices shared out over ranks (DeepSpeed AutoTP with ZeRO-1): the numbers, the weights and the checkpoints are those
of one process, for tied and untied heads, biases, norms of heads, and vocabularies that no number divides.
"""

import functools

import pytest
import torch

from finetune.distributed.tensor_parallel import gather_slices, slice_of, whole_shape
from finetune.errors import UserError
from finetune.planning.tensor import check_model
from finetune.training.checkpoint import checkpoint_bytes
from finetune.training.checkpoint_reader import load_checkpoint, open_checkpoint
from finetune.training.checkpoint_tensors import CheckpointTensors
from tests.distributed import toy
from tests.ranks import RankError

STEPS, SAVE_AT, END = 6, 3, 6


def tiny(kind, seed=0):
    """Two layers, 4 heads, 2 key-value heads; seed: of the weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    name, _, what = kind.partition(" ")
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        name, vocab_size=67 if what == "untied" else 64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=what != "untied",
    )  # fmt: skip
    if name in ("qwen3", "gemma"):
        config.head_dim = 8
    if what == "normed":
        config.use_qk_norm = True
    if what == "dropout":
        config.hidden_dropout = config.attention_dropout = 0.2
    if what == "biased":
        config.attention_bias = config.mlp_bias = True
    check_model(config, 2)
    model = AutoModelForCausalLM.from_config(config)
    if what == "sparing":  # activations are computed again in the backward pass, and communicated again
        model.gradient_checkpointing_enable()
    with torch.no_grad():  # biases and norms that a mistake would show in
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    for number, parameter in enumerate(model.parameters()):  # embeddings and most of the first layer
        parameter.requires_grad = not (what == "frozen" and number < 8)
    return model


@pytest.fixture(scope="module")
def pool(ranks):
    return ranks.options(open_group=False, timeout=120)


KINDS = [
    "llama tied", "llama untied", "llama biased", "llama sparing", "llama frozen",
    "qwen2 tied", "qwen3 untied", "mistral tied",
    "gemma tied", "gpt_neox untied", "phi untied", "granite tied",
]  # fmt: skip


@functools.cache
def reference(kind):
    """One process in float64: losses, norms, weights."""
    model = tiny(kind)
    return *toy.train_reference(model, STEPS), model.state_dict()


def train(kind, micro_batch="auto"):
    engine, batch = toy.open_toy("zero1", build=lambda: tiny(kind), tensor=2, micro_batch=micro_batch)
    seen = []
    losses, norms = toy.train_toy(engine, batch, range(STEPS), seen=seen)
    held = {name: (tuple(p.shape), whole_shape(p)) for name, p in engine.module.named_parameters()}
    return losses, norms, seen, held, engine.full_state_dict()


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_that_share_matrices_are_one_process(pool, kind):
    results = pool.run(2, train, kind)
    losses, norms, weights = reference(kind)
    assert max(norms) > toy.TRAINING.max_grad_norm, "nothing was clipped"
    for result in results:
        assert result[0] == pytest.approx(losses, rel=1e-5)
        assert result[1] == pytest.approx(norms, rel=1e-4)
    state = results[0][4]
    assert results[1][4] is None
    assert state.keys() == weights.keys()
    for name, tensor in weights.items():
        if name.endswith(("k_proj.bias", "query_key_value.bias")):
            continue  # attention does not depend on a key's bias: its gradient is rounding, which Adam takes for one
        torch.testing.assert_close(state[name].double(), tensor, rtol=0, atol=1e-5)
    sliced = {name for name, (own, whole) in results[0][3].items() if own != whole}
    assert len(sliced) >= 2 * 4
    assert not any("norm" in name or "embed" in name for name in sliced)
    assert any("lm_head" in name or "embed_out" in name for name in sliced) == ("untied" in kind)


def train_with_dropout():
    engine, batch = toy.open_toy("zero1", build=lambda: tiny("gpt_neox dropout"), tensor=2)
    losses, _ = toy.train_toy(engine, batch, range(STEPS))
    whole = {name: p.detach().clone() for name, p in engine.module.named_parameters() if slice_of(p) is None}
    return losses, whole, {name: gather_slices(p) for name, p in engine.module.named_parameters()}


def test_with_dropout_the_ranks_of_a_replica_stay_together(pool):
    (losses, ours, whole), (again, theirs, _) = pool.run(2, train_with_dropout)
    assert losses == again
    assert losses != pytest.approx(reference("gpt_neox tied")[0], rel=1e-3), "dropout did nothing"
    assert len(ours) >= 8
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert whole.keys() > ours.keys()


def open_it(kind):
    toy.open_toy("zero1", build=lambda: tiny(kind), tensor=2)


def test_a_frozen_norm_of_heads_is_refused(pool):
    with pytest.raises(RankError) as error:
        pool.run(2, open_it, "qwen3 frozen")
    assert all(isinstance(cause, UserError) and "q_norm" in str(cause) for cause in error.value.causes.values())


@pytest.mark.parametrize(("kind", "named"), [("cohere normed", "q_norm"), ("doge tied", "self_attn.A")])
def test_what_would_see_a_part_of_its_gradient_is_refused(pool, kind, named):
    with pytest.raises(RankError) as error:
        pool.run(2, open_it, kind)
    causes = list(error.value.causes.values())
    assert len(causes) == 2 and all(isinstance(cause, UserError) for cause in causes)
    refused_by_plan = "what DeepSpeed does not support" in str(causes[0])  # transformers 5.17 plans doge otherwise
    assert refused_by_plan or (named in str(causes[0]) and "stays whole" in str(causes[0]))


def count_reductions(kind):
    from deepspeed.comm.torch import TorchBackend

    engine, batch = toy.open_toy("zero1", build=lambda: tiny(kind), tensor=2)
    toy.train_toy(engine, batch, range(1))
    counted, real = [], TorchBackend.all_reduce
    TorchBackend.all_reduce = lambda self, tensor, *rest, **named: (
        counted.append(tuple(tensor.shape)), real(self, tensor, *rest, **named))[1]  # fmt: skip
    try:
        toy.train_toy(engine, batch, range(1, 2))
    finally:
        TorchBackend.all_reduce = real
    return [shape for shape in counted if len(shape) == 3 and shape[-1] == 32]


@pytest.mark.parametrize(("kind", "a_layer", "of_head"), [("llama tied", 4, 0), ("qwen3 untied", 4, 1)])
def test_each_input_s_gradient_is_reduced_once(pool, kind, a_layer, of_head):
    counted = pool.run(2, count_reductions, kind)
    micro_batches = 2
    assert [len(found) for found in counted] == [micro_batches * (2 * a_layer + of_head)] * 2


@pytest.mark.parametrize("micro_batch", ["auto", 1])
def test_two_replicas_of_two_ranks_are_one_process(pool, micro_batch):
    results = pool.run(4, train, "llama untied", micro_batch)
    losses, norms, weights = reference("llama untied")
    assert results[0][0] == pytest.approx(losses, rel=1e-5)
    assert results[0][1] == pytest.approx(norms, rel=1e-4)
    for name, tensor in weights.items():
        torch.testing.assert_close(results[0][4][name].double(), tensor, rtol=0, atol=1e-5)
    seen = [result[2] for result in results]
    assert seen[0] == seen[1], "the ranks of a replica compute the same examples"
    assert seen[2] == seen[3]
    for step in range(STEPS):
        assert sorted(seen[0][step] + seen[2][step]) == sorted(set(seen[0][step] + seen[2][step]))


def open_any(config, tensor, precision="fp32", seed=0):
    return toy.open_toy(config, precision=precision, tensor=tensor, build=lambda: tiny("llama untied", seed))


def train_and_save(folder, config, tensor, precision="fp32"):
    engine, batch = open_any(config, tensor, precision)
    before = checkpoint_bytes(engine, "adamw")
    toy.train_toy(engine, batch, range(SAVE_AT))
    saved = toy.save_checkpoint(engine, folder, step=SAVE_AT, training={"task": "toy"}, loop={"step": SAVE_AT})
    losses, _ = toy.train_toy(engine, batch, range(SAVE_AT, END))
    return saved.path, losses, engine.full_state_dict(), before


def load_and_train(path, config, tensor, precision="fp32"):
    engine, batch = open_any(config, tensor, precision, seed=9)  # nothing may come from the seed
    load_checkpoint(engine, open_checkpoint(path))
    losses, _ = toy.train_toy(engine, batch, range(SAVE_AT, END))
    return path, losses, engine.full_state_dict()


@pytest.fixture(scope="module")
def saved(pool, tmp_path_factory):
    """What each layout saved, and how it went on; saved once a layout."""
    done = {}

    def save(*layout):
        if layout not in done:
            folder = tmp_path_factory.mktemp("saved")
            done[layout] = pool.run(layout[0], train_and_save, folder, *layout[1:])[0]
        return done[layout]

    return save


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_layout_goes_on_bit_for_bit(pool, saved, precision):
    path, losses, after, _ = saved(2, "zero1", 2, precision)
    _, again, resumed = pool.run(2, load_and_train, path, "zero1", 2, precision)[0]
    assert again == losses
    assert all(torch.equal(after[name], resumed[name]) for name in after)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((2, "zero1", 2), (1, "none", 1)), ((1, "none", 1), (2, "zero1", 2)), ((2, "zero1", 2), (2, "zero3", 1)),
        ((2, "zero3", 1), (2, "zero1", 2)), ((4, "zero1", 2), (2, "zero1", 2)), ((2, "zero1", 2), (4, "zero1", 2)),
    ],
)  # fmt: skip
def test_another_layout_goes_on_with_the_same_losses(pool, saved, old, new):
    path, losses, after, _ = saved(*old)
    _, again, resumed = pool.run(new[0], load_and_train, path, *new[1:])[0]
    assert again == pytest.approx(losses, rel=1e-5)
    for name in after:
        torch.testing.assert_close(resumed[name], after[name], rtol=0, atol=1e-5)


def test_a_checkpoint_holds_each_number_once(saved):
    path, _, _, announced = saved(2, "zero1", 2)
    checkpoint, whole = open_checkpoint(path), saved(1, "none", 1)
    shapes = checkpoint.manifest.shapes
    assert shapes == open_checkpoint(whole[0]).manifest.shapes
    with CheckpointTensors(checkpoint) as stored, CheckpointTensors(open_checkpoint(whole[0])) as plain:
        assert stored.keys == plain.keys == set(shapes)
        for key in shapes:
            torch.testing.assert_close(stored.whole(key), plain.whole(key), rtol=0, atol=1e-5)
    numbers = sum(torch.Size(shape).numel() for shape in shapes.values())
    written = sum(size for size, _ in checkpoint.manifest.files.values())
    assert 4 * numbers < written < 4.2 * numbers + 20_000  # headers name every piece
    assert announced == 4 * numbers == whole[3]


def sizes():
    engine, _ = toy.open_toy("zero1", build=lambda: tiny("llama untied"), tensor=2)
    output_dirs = {name: slice_of(parameter) for name, parameter in engine.module.named_parameters()}
    return output_dirs, sum(parameter.numel() for parameter in engine.module.parameters())


def test_each_rank_holds_its_slice_alone(pool):
    results = pool.run(2, sizes)
    for rank, (output_dirs, numel) in enumerate(results):
        down = output_dirs["model.layers.0.mlp.down_proj.weight"]
        assert (down.dim, down.columns, down.index) == (1, ((0, 32), (32, 64))[rank], rank)
        head = output_dirs["lm_head.weight"]
        assert (head.sizes, head.columns, head.first_element) == ((34, 33), None, (0, 34 * 32)[rank])
        whole = 2 * 67 * 32 + 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32 + 2 * 32) + 32
        kept = 67 * 32 + 5 * 32  # embeddings and norms
        assert numel == kept + (whole - kept - 67 * 32) // 2 + (34, 33)[rank] * 32
