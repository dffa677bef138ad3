"""On CUDA: every task trains under DeepSpeed and DistributedDataParallel in bf16, and one batch of it is there what it is on
the CPU.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.tasks import CARDS
from finetune.tasks.batch import map_tensors
from tests.contract.examples import EXAMPLES, TinyExample
from tests.gpu.conftest import GpuRanks
from tests.prepared import prepare

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(170)]
DEVICE = torch.device("cuda")
STEPS = 6
VIT = replace(
    next(one for one in EXAMPLES if one.task == "image_classification"),
    model={
        "source": "vit",
        "init": "config",
        "config": {
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "image_size": 16, "patch_size": 4, "hidden_dropout_prob": 0.0,
        },
    },
    options={"image_size": 16},
    learning_rate=1e-3,
)  # fmt: skip


def variants() -> list[Any]:
    """Every tiny example; images also with attention, and with BatchNorm over all ranks."""
    found = [(f"{one.task}-{one.options.get('loss', '')}".rstrip("-"), one) for one in EXAMPLES]
    (resnet,) = (one for one in EXAMPLES if one.task == "image_classification")
    synchronized = replace(resnet, model={**resnet.model, "batch_norm": "synchronized"})
    found += [("vit", VIT), ("resnet-synchronized", synchronized)]
    return [pytest.param(example, id=name) for name, example in found]


EVERY = pytest.mark.parametrize("example", variants())


def recipe(example: TinyExample, folder: Path, **changes: Any) -> dict[str, Any]:
    """Eight rows a step, which are the validation rows too; every table and sample is made."""
    values = example.recipe(folder)
    data = {**values["data"], "validation": values["data"]["train"]}
    training = {"steps": STEPS, "global_batch": 8, "learning_rate": example.learning_rate / 4, "precision": "bf16"}
    sections = {
        "data": data,
        "training": training,
        "evaluation": {"every": STEPS, "samples": 2},
        "tracking": {"wandb": "off", "log_every": 1},
        "parallel": {},
    }
    return {**values, **sections, **changes}


@EVERY
def test_a_task_learns_in_bf16_and_engines_agree(gpu: GpuRanks, example: TinyExample) -> None:
    values = recipe(example, gpu.folder)
    found = {}
    for name in ("none", "zero2", "zero3"):
        run = gpu.train(values, f"run-{name}", f"parallel.deepspeed={name}")
        found[name] = run.losses()
        assert len(found[name]) == STEPS and all(map(math.isfinite, found[name]))
        assert found[name][-1] < found[name][0], name
        *_, validation = (row for row in run.rows if row["split"] == "validation")
        figures = [key for key in validation if key in CARDS[example.task].metrics.default]
        assert math.isfinite(validation["loss"]) and figures
        assert (run.path / "model").is_dir() and (run.path / "report.html").is_file()
    apart = (
        0.2 if example.task == "object_detection" else 0.08
    )  # boxes are matched anew, and rounding decides who is whose
    for name in ("zero2", "zero3"):
        assert found[name][:4] == pytest.approx(found["none"][:4], rel=apart, abs=0.03), name


@EVERY
def test_a_batch_on_cuda_is_the_batch_on_the_cpu(example: TinyExample, tmp_path: Path, own_cache: Path) -> None:
    """In float32, without fused layers: loss, gradients, answers, scores and samples. Under bf16 autocast: answers and scores
    exist, the loss is near.
    """
    ready = prepare(example.recipe(tmp_path, model={**example.model, "kernels": "none"}))
    # Detectors keep the mode of training: statistics that nobody has estimated make their gradients 1e15.
    trains = example.task == "object_detection"
    model, there = ready.build().train(trains), ready.build().train(trains).to(DEVICE)
    ready.add_reference(model)
    batch = ready.batch()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    moved = batch.to(DEVICE)
    found = []
    for one, rows in ((model, batch), (there, moved)):
        loss = ready.loss_sum(one, rows)
        loss.backward()
        norms = {name: weight.grad.norm().item() for name, weight in one.named_parameters() if weight.grad is not None}
        with torch.no_grad():
            outputs = ready.task.forward(one, rows)
            answers, scores = ready.answers(outputs, rows), ready.scores(outputs, rows)
            shown = ready.task.sample(ready.artifacts, one, [ready.datasets["train"][0]], synced=False)
        found.append((loss.item(), norms, answers, scores, shown))
    (loss, norms, answers, scores, shown), cuda = found
    assert cuda[0] == pytest.approx(loss, rel=1e-4)
    total = math.hypot(*norms.values())
    assert cuda[1] == pytest.approx(norms, rel=1e-2 if trains else 1e-3, abs=1e-4 * total)
    assert [answer.id for answer in cuda[2]] == [answer.id for answer in answers]
    assert [score.loss for score in cuda[3]] == pytest.approx([score.loss for score in scores], rel=1e-3, abs=1e-4)
    assert [row["expected"] for row in cuda[4]] == [row["expected"] for row in shown]

    with torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16):
        outputs = ready.task.forward(there, moved)
        rounded = ready.task.loss_sum(ready.artifacts, outputs, moved)
        assert len(ready.answers(outputs, moved)) == len(ready.scores(outputs, moved)) == 8
    assert rounded.item() == pytest.approx(loss, rel=0.05)
    map_tensors(
        moved.inputs, lambda tensor: tensor.device.type == DEVICE.type or pytest.fail("a tensor stayed on the CPU")
    )
