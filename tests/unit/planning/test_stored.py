"""What of plan.json is kept when a run is resumed on another machine, and what is told of it."""

import json
from pathlib import Path

import pytest
import torch

from finetune.app.machine import plan_alone, plan_here
from finetune.app.recipes import resolve_recipe
from finetune.errors import UserError
from finetune.planning.stored import StoredPlan

FLAT = {  # of the first design, as it wrote it
    "ranks": 2, "device": "cuda", "precision": "bf16",
    "batch": {"global_batch": 64, "replicas": 2, "micro_batch": 16, "accumulation": 2},
    "deepspeed": {"zero_optimization": {"stage": 2}}, "optimizer": "adamw", "split": 1, "pipeline": 1,
    "state_bytes": {"weights": 1},
}  # fmt: skip


@pytest.fixture
def recipe():
    return resolve_recipe("quickstart", ["model.source=bert", "model.init=config", "model.tokenizer=train:200"]).recipe


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a GPU that has bf16, as far as planning asks."""
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)

    def set_gpu(present):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: present)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: present)

    set_gpu(True)
    return set_gpu


def write(folder, tree) -> Path:
    path = folder / "plan.json"
    path.write_text(json.dumps(tree))
    return path


def test_a_run_begun_in_bf16_on_a_gpu_goes_on_in_bf16_on_a_cpu(recipe, gpu, tmp_path):
    begun = plan_here(recipe, 2)
    assert (begun.precision, begun.device, begun.machine.weights_dtype) == ("bf16", "cuda", "bfloat16")
    path = write(tmp_path, {**begun.to_dict(), "state_bytes": {}})
    gpu(False)
    fresh = plan_here(recipe, 1)
    assert (fresh.precision, fresh.machine.weights_dtype, fresh.notes) == ("fp32", "float32", ())
    resumed = plan_here(recipe, 1, StoredPlan.read(path))
    assert resumed.training == begun.training and resumed.device == "cpu"
    assert resumed.machine.weights_dtype == "bfloat16" and resumed.deepspeed["bf16"]["enabled"] is True
    (note,) = resumed.notes
    assert "precision bf16 as the run began (here it would be fp32)" in note and "\n" not in note
    assert "ranks 2 -> 1" in note and "device cuda -> cpu" in note


def test_a_resume_where_nothing_differs_says_nothing(recipe, tmp_path):
    plan = plan_here(recipe, 2)
    resumed = plan_here(recipe, 2, StoredPlan.read(write(tmp_path, plan.to_dict())))
    assert resumed == plan and resumed.notes == ()


def test_another_zero_stage_is_reported(recipe, gpu, tmp_path):
    gpu(False)
    tree = plan_here(recipe, 2).to_dict()
    stage = tree["machine"]["deepspeed"]["zero_optimization"]["stage"]
    tree["machine"]["deepspeed"]["zero_optimization"]["stage"] = stage + 1
    (note,) = plan_here(recipe, 2, StoredPlan.read(write(tmp_path, tree))).notes
    assert note == f"resuming with ZeRO stage {stage + 1} -> {stage}"


def test_a_plan_of_the_first_design_says_the_precision_and_no_more(recipe, gpu, tmp_path):
    gpu(False)
    resumed = plan_here(recipe, 2, StoredPlan.read(write(tmp_path, FLAT)))
    assert resumed.precision == "bf16" and resumed.training.metrics == plan_here(recipe, 2).training.metrics
    assert "device cuda -> cpu" in resumed.notes[0] and "engine" not in resumed.notes[0]


def test_keys_of_another_version_are_no_harm(recipe, tmp_path):
    tree = plan_here(recipe, 1).to_dict()
    del tree["training"]["packing"]
    tree["training"]["future"] = 1
    assert plan_here(recipe, 1, StoredPlan.read(write(tmp_path, tree))).training == plan_here(recipe, 1).training


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"training": {"precision": "fp8"}, "machine": {}}'])
def test_a_damaged_plan_is_no_reason_to_change_the_precision_unnoticed(text, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(UserError, match="the plan of the run cannot be read") as told:
        StoredPlan.read(path)
    assert told.value.where == str(path)
    assert StoredPlan.read(tmp_path / "none.json") is None


@pytest.mark.parametrize(
    ("changes", "environment", "precision", "dtype", "device"),
    [
        ({}, {}, "bf16", "bfloat16", "cuda"),
        ({}, {"DS_ACCELERATOR": "cpu"}, "fp32", "float32", "cpu"),
        ({"parallel": {"deepspeed": "none"}}, {}, "bf16", "bfloat16", "cuda"),
        ({"parallel": {"deepspeed": "none"}}, {"DS_ACCELERATOR": "cpu"}, "fp32", "float32", "cpu"),
        ({"training": {"precision": "bf16"}}, {"DS_ACCELERATOR": "cpu"}, "bf16", "bfloat16", "cpu"),
        ({"training": {"precision": "fp32"}}, {}, "fp32", "float32", "cuda"),
        ({"model": {"dtype": "float32"}}, {}, "bf16", "float32", "cuda"),
    ],
)
def test_precision_dtype_and_device_agree(recipe, gpu, monkeypatch, changes, environment, precision, dtype, device):
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for section, values in changes.items():
        recipe = recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=values)})
    plan = plan_here(recipe, 2)
    assert (plan.precision, plan.machine.weights_dtype, plan.device) == (precision, dtype, device)
    if plan.deepspeed is not None:
        assert plan.deepspeed["bf16"]["enabled"] == (precision == "bf16")
    assert plan_alone(recipe).machine.weights_dtype == dtype  # what export and the reference of verify load


def test_a_quantized_base_lies_where_the_ranks_compute(gpu, monkeypatch):
    from finetune.models.device import uses_cuda

    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    assert uses_cuda()
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert not uses_cuda()


def test_fp16_cannot_be_resumed_without_a_gpu(recipe, gpu, tmp_path):
    fp16 = recipe.model_copy(update={"training": recipe.training.model_copy(update={"precision": "fp16"})})
    stored = StoredPlan.read(write(tmp_path, plan_here(fp16, 1).to_dict()))
    gpu(False)
    with pytest.raises(UserError, match="fp16 needs a GPU") as told:
        plan_here(fp16, 1, stored)
    assert told.value.remedy == "Resume the run on a GPU."
