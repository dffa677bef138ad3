"""Proves that a rank that sees only images without boxes neither hangs nor fails, and that ranks share their buffers."""

import math
from pathlib import Path

import pytest
import torch

from finetune.distributed.engines.engine import EngineOptions
from finetune.distributed.engines.registry import open_engine
from finetune.distributed.session import Session
from finetune.planning.batch import plan_batch
from finetune.planning.deepspeed import resolve_deepspeed_config
from finetune.training.parameter_groups import make_optimizer
from finetune.training.step import train_step
from tests.contract.examples import DFINE, EXAMPLES
from tests.prepared import prepare
from tests.unit.tasks.test_object_detection import FAMILIES

FILLED, EMPTY = (0, 1, 5), 3  # of the tiny example's eight images


def steps(folder, name, model, stage, own, count, precision="fp32"):
    """`count` steps of a task's tiny example with the images `own[rank]` on each rank; (losses, buffers by name)."""
    torch.manual_seed(0)
    config = None
    if stage:
        batch = plan_batch(4, len(own), "auto", 4)
        config = resolve_deepspeed_config(
            {"zero_optimization": {"stage": stage}}, batch=batch, precision=precision, max_grad_norm=1.0
        )
    session = Session.open(config, precision=precision, cpu=True)
    example = next(example for example in EXAMPLES if example.task == name)
    values = example.recipe(
        Path(folder) / str(session.rank),
        model={**example.model, **model},
        training={"precision": precision},
        parallel={"deepspeed": f"zero{stage}" if stage else "none"},
    )
    with pytest.MonkeyPatch.context() as patch:  # not longer: compiled extensions lie in the user's own cache
        patch.setenv("XDG_CACHE_HOME", str(Path(folder) / "cache"))
        prepared = prepare(values)
    plan = prepared.plan
    options = EngineOptions(max_grad_norm=1.0, synchronized=plan.training.batch_norm == "synchronized")
    make = lambda module: make_optimizer(module, plan.recipe.training, "adamw")  # noqa: E731
    engine = open_engine("deepspeed" if stage else "ddp", session, prepared.build(), make, options)
    engine.model.train()
    losses = []
    for _ in range(count):
        batch = prepared.batch(own[session.rank])
        losses.append(train_step(prepared.task, prepared.artifacts, engine, [batch], stop=False).loss)
    before = running(engine)
    engine.align_buffers()  # what evaluation and every save begin with
    return losses, before, running(engine)


def running(engine):
    return {name: buffer.tolist() for name, buffer in engine.module.named_buffers() if "running" in name}


@pytest.fixture
def folder(tmp_path):
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
    return str(tmp_path)


@pytest.mark.parametrize("stage", [0, 2])
def test_a_rank_with_only_empty_images_keeps_step(ranks, folder, stage):
    model = {"config": {**DFINE, "num_denoising": 8}, "batch_norm": "synchronized"}
    pool = ranks.options(open_group=False, timeout=120)
    one, other = pool.run(2, steps, folder, "object_detection", model, stage, [FILLED, (EMPTY,)], 3)
    assert one[0] == pytest.approx(other[0]) and all(math.isfinite(loss) for loss in one[0])
    assert one[0][-1] < one[0][0]
    assert one[1] == other[1] and one[1]  # BatchNorm's statistics are those of both ranks, before they are aligned


@pytest.mark.parametrize("family", FAMILIES)
def test_detectors_train_with_bf16_weights(ranks, folder, family):
    """Under ZeRO all weights are bf16; denoising boxes and masks are made in float32 whatever they are."""
    denoising = {"num_denoising": 8} if family in ("d_fine", "rt_detr_v2") else {}
    model = {"source": family, "config": {**FAMILIES[family], **denoising}, "batch_norm": "frozen"}
    pool = ranks.options(open_group=False, timeout=120)
    arguments = (folder, "object_detection", model, 2, [(0, 1, EMPTY, 5)], 3)
    (exact, *_), (half, *_) = (pool.run(1, steps, *arguments, precision)[0] for precision in ("fp32", "bf16"))
    assert half[0] == pytest.approx(exact[0], rel=0.1) and half[0] != exact[0]
    assert all(map(math.isfinite, half)) and len(set(half)) == 3


@pytest.mark.parametrize("stage", [0, 2])
@pytest.mark.parametrize("batch_norm", ["synchronized", "local", "frozen"])
def test_every_rank_has_the_same_buffers_where_it_counts(ranks, folder, batch_norm, stage):
    pool = ranks.options(open_group=False, timeout=120)
    own = [(0, 2, 4), (1, 3)]
    one, other = pool.run(2, steps, folder, "image_classification", {"batch_norm": batch_norm}, stage, own, 2)
    assert one[2] == other[2] and one[2]
    moved = any(max(map(abs, values)) > 0 for name, values in one[1].items() if name.endswith("running_mean"))
    assert moved == (batch_norm != "frozen")
    assert (one[1] == other[1]) == (batch_norm != "local")  # local ones do drift apart: aligning is needed
