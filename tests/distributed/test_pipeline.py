"""A model in a pipeline over ranks learns what one process learns that accumulates the same micro-batches: losses,
norms, weights and evaluation; each rank holds its own layers alone; its checkpoints know no layout.
"""

import gc
import os
import weakref
from pathlib import Path
from unittest import mock

import pytest
import torch

from finetune.app.workers import context as set_up_module
from finetune.tasks import load_task
from finetune.training.checkpoint_reader import load_checkpoint, open_checkpoint
from tests.distributed import pictures

STEPS = 5  # more than an epoch, whose last step has one image (and, on two replicas, a dummy)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def pool(ranks):
    return ranks.options(open_group=False, timeout=120, environment={"XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"]})


def same(ours, theirs, *, weights=1e-5):
    """Losses, norms, evaluation and weights of two runs agree to rounding."""
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-5)
    assert ours["norms"] == pytest.approx(theirs["norms"], rel=1e-4)
    assert ours["evaluation"] == pytest.approx(theirs["evaluation"], rel=1e-4, abs=1e-5)
    assert ours["weights"].keys() == theirs["weights"].keys()
    for name, tensor in theirs["weights"].items():
        assert torch.allclose(ours["weights"][name], tensor, rtol=1e-4, atol=weights), name


@pytest.mark.parametrize("model", ["resnet", "convnext", "vit"])
def test_two_stages_learn_what_one_process_learns(pool, tmp_path, model):
    (one,) = pool.run(1, pictures.train, pictures.recipe(model), tmp_path / "one", STEPS)
    first, last = pool.run(2, pictures.train, pictures.recipe(model, pipeline=2), tmp_path / "two", STEPS)
    same(first, one)
    assert last["losses"] == first["losses"] and last["norms"] == first["norms"]  # the same on every rank
    assert last["weights"] is None
    assert first["count"] == pictures.VALIDATION_ROWS
    whole = one["held"]
    assert first["held"] + last["held"] == whole and 0 < first["held"] < whole
    assert first["moments"] + last["moments"] < one["moments"] + 100  # but for a step count a tensor
    assert all(seconds > 0 for seconds in (*first["idle"], *last["idle"]))


def test_two_replicas_of_two_stages_learn_what_two_ranks_learn(pool, tmp_path):
    synchronized = {"batch_norm": "synchronized"}  # over the replicas of a stage
    two = pool.run(2, pictures.train, pictures.recipe(**synchronized), tmp_path / "two", STEPS)[0]
    four = pool.run(4, pictures.train, pictures.recipe(pipeline=2, **synchronized), tmp_path / "four", STEPS)
    same(four[0], two)
    assert all(result["losses"] == four[0]["losses"] for result in four)
    assert [result["held"] for result in four[:2]] == [result["held"] for result in four[2:]]


def test_three_stages(pool, tmp_path):
    one = pool.run(1, pictures.train, pictures.recipe("vit"), tmp_path / "one", STEPS)[0]
    three = pool.run(3, pictures.train, pictures.recipe("vit", pipeline=3), tmp_path / "three", STEPS)
    same(three[0], one)
    assert sum(result["held"] for result in three) == one["held"]


def test_an_adapter_and_checkpointed_activations(pool, tmp_path):
    changes = {"adapter": {"rank": 4, "dropout": 0.0}, "model_options": {"gradient_checkpointing": True}}
    one = pool.run(1, pictures.train, pictures.recipe("vit", **changes), tmp_path / "one", 3)[0]
    two = pool.run(2, pictures.train, pictures.recipe("vit", pipeline=2, **changes), tmp_path / "two", 3)[0]
    same(two, one)


def surviving(values, folder):
    """Elements of the weights as they were built that are still in memory; of those that this rank holds."""
    task, built = load_task("image_classification"), []
    build = task.build

    def watched(*arguments):
        model = build(*arguments)
        built.extend(weakref.ref(parameter) for parameter in model.parameters())
        return model

    with mock.patch.object(task, "build", watched, create=True):
        context, _ = pictures.open_pictures(values, folder)
    gc.collect()
    alive = [reference() for reference in built]
    held = [parameter for parameter in context.engine.module.parameters() if not parameter.is_meta]
    return sum(p.numel() for p in alive if p is not None), sum(p.numel() for p in held), len(built)


def test_weights_of_other_stages_leave_the_memory(pool, tmp_path):
    results = pool.run(2, surviving, pictures.recipe("convnext", pipeline=2), tmp_path)
    for alive, held, _ in results:
        assert alive == held > 0
    assert results[0][1] != results[1][1]


def test_a_checkpoint_goes_from_a_pipeline_to_one_process_and_back(pool, tmp_path):
    apart, whole = pictures.recipe(pipeline=2), pictures.recipe()
    half = pool.run(2, pictures.train, apart, tmp_path / "a", 2, save=True)[0]
    straight = pool.run(1, pictures.train, whole, tmp_path / "b", STEPS)[0]
    one = pool.run(1, start_elsewhere, whole, tmp_path / "c", 1, half["saved"], 2)[0]
    back = pool.run(2, start_elsewhere, apart, tmp_path / "d", STEPS - 3, one["saved"], 3)[0]
    assert half["losses"] + one["losses"] + back["losses"] == pytest.approx(straight["losses"], rel=1e-5)
    for name, tensor in straight["weights"].items():
        assert torch.allclose(back["weights"][name], tensor, rtol=1e-4, atol=1e-5), name


def start_elsewhere(values, folder, steps, load, first):
    """Train on from a checkpoint, in a model that was made with other weights."""
    task = load_task("image_classification")
    build = task.build

    def build_otherwise(*arguments):
        model = build(*arguments)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.7).add_(0.1)
        return model

    with mock.patch.object(task, "build", build_otherwise, create=True):
        return pictures.train(values, folder, steps, load=load, first=first, save=True)


def answer(values, folder, load):
    """Evaluate a checkpoint with an engine that was opened without an optimizer."""
    real = set_up_module.open_engine

    def open_for_inference(name, session, model, make_optimizer, options):
        return real(name, session, model, None, options)

    with mock.patch.object(set_up_module, "open_engine", open_for_inference):
        context, loop = pictures.open_pictures(values, folder)
    load_checkpoint(context.engine, open_checkpoint(Path(load)))
    evaluation = loop.measure("validation")
    return evaluation.scalars, context.engine.optimizer, context.engine.full_state_dict()


def test_without_an_optimizer_a_pipeline_answers_as_the_one_that_trained(pool, tmp_path):
    values = pictures.recipe(pipeline=2)
    trained = pool.run(2, pictures.train, values, tmp_path / "a", 2, save=True)[0]
    (scalars, optimizer, weights), (others, none, _) = pool.run(2, answer, values, tmp_path / "b", trained["saved"])
    assert optimizer is none is None
    assert scalars == others == trained["evaluation"]
    assert all(torch.equal(weights[name], tensor) for name, tensor in trained["weights"].items())


def test_the_same_layout_goes_on_bit_for_bit_with_dropout(pool, tmp_path):
    config = {**pictures.MODELS["vit"], "hidden_dropout_prob": 0.2}
    values = pictures.recipe("vit", pipeline=2, model_options={"config": config})
    half = pool.run(2, pictures.train, values, tmp_path / "a", 2, save=True)[0]
    rest = pool.run(2, pictures.train, values, tmp_path / "b", 2, load=half["saved"], first=2)[0]
    straight = pool.run(2, pictures.train, values, tmp_path / "c", 4)[0]
    assert half["losses"] + rest["losses"] == straight["losses"]
    assert all(torch.equal(rest["weights"][name], tensor) for name, tensor in straight["weights"].items())


def test_frozen_layers_in_bf16(pool, tmp_path):
    changes = {"model_options": {"freeze": ["resnet.embedder"]}, "training": {"precision": "bf16"}}
    one = pool.run(1, pictures.train, pictures.recipe(**changes), tmp_path / "one", 3)[0]
    two = pool.run(2, pictures.train, pictures.recipe(pipeline=2, **changes), tmp_path / "two", 3)[0]
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-3)
    stem = "resnet.embedder.embedder.convolution.weight"
    assert torch.equal(two["weights"][stem], one["weights"][stem])


def sampled(values, folder):
    messages = []
    context, loop = pictures.open_pictures(values, folder, messages)
    rows = []

    def keep(name, **table):
        rows.append((name, [[cell.removeprefix(f"{folder}/") for cell in row] for row in table["rows"]]))

    loop.listener.table = keep
    loop.samples.show("before", 0)
    return messages, rows, context.facts.values.get("pipeline")


def test_samples_are_shown_and_the_stages_are_reported(pool, tmp_path):
    one = pool.run(1, sampled, pictures.recipe(), tmp_path / "one")[0]
    first, last = pool.run(2, sampled, pictures.recipe(pipeline=2), tmp_path / "two")
    assert first[1] == one[1] and first[1] and not last[1]
    assert not one[0] and len(first[0]) == 4
    assert "stage 1 of 2: resnet.embedder.embedder.convolution to" in first[0][0]
    assert "5 micro-batches of 5 per step, so each stage is idle for at least 17%" in first[0][2]
    assert "BatchNorm" in first[0][3]
