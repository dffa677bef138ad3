"""On CUDA: what a recipe may choose besides its engine keeps the losses, or learns."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest

from tests.contract.examples import EXAMPLES
from tests.distributed.pictures import recipe as picture_recipe
from tests.distributed.test_slices import write_model
from tests.gpu.conftest import GpuRanks
from tests.gpu.language_model import STEPS, recipe, write_rows

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(170)]
DDP, BF16, FP32 = "parallel.deepspeed=none", "training.precision=bf16", "training.precision=fp32"


def needs(package: str) -> Any:
    found = importlib.util.find_spec(package) is not None
    return pytest.mark.skipif(not found, reason=f"{package} is not installed")


@pytest.fixture(autouse=True)
def _rows(tmp_path: Path) -> None:
    write_rows(tmp_path)


@needs("liger_kernel")
@pytest.mark.parametrize(("precision", "apart"), [(FP32, 1e-3), (BF16, 3e-2)])
def test_fused_layers_have_the_losses_of_plain_ones(gpu: GpuRanks, precision: str, apart: float) -> None:
    fused = gpu.train(recipe(), "run-liger", DDP, precision, "model.kernels=liger")
    plain = gpu.train(recipe(), "run-plain", DDP, precision, "model.kernels=none")
    assert fused.plan()["kernels"] == "liger" and plain.plan()["kernels"] == "none"
    assert fused.losses() == pytest.approx(plain.losses(), rel=apart)


def test_compiled_layers_have_the_losses_of_plain_ones(gpu: GpuRanks) -> None:
    sets = (DDP, FP32, "training.steps=5", "model.kernels=none")
    compiled = gpu.train(
        recipe(), "run-compiled", *sets, "model.compile=layers", seconds=130
    )  # Triton's kernels among it
    plain = gpu.train(recipe(), "run-plain", *sets)
    assert compiled.plan()["compile"] == "layers"
    assert "not compiled" not in compiled.said and "compiled" in compiled.said, compiled.said
    assert compiled.losses() == pytest.approx(plain.losses(), rel=1e-3)


def test_masters_have_the_losses_of_zero1(gpu: GpuRanks) -> None:
    masters = gpu.train(recipe(), "run-masters", DDP, BF16, "parallel.master_weights=true")
    zero1 = gpu.train(recipe(), "run-zero1", "parallel.deepspeed=zero1", BF16)
    wide = gpu.train(recipe(), "run-wide", DDP, BF16, "parallel.master_weights=false")
    assert masters.plan()["master_weights"] and not wide.plan()["master_weights"]
    assert masters.losses() == pytest.approx(zero1.losses(), rel=1e-2)
    assert masters.losses() == pytest.approx(wide.losses(), rel=3e-2)


def test_tf32_is_near_float32(gpu: GpuRanks) -> None:
    tf32 = gpu.train(recipe(), "run-tf32", DDP, "training.precision=tf32")
    exact = gpu.train(recipe(), "run-fp32", DDP, FP32)
    assert tf32.plan("training")["precision"] == "tf32"
    assert tf32.losses() == pytest.approx(exact.losses(), rel=1e-2)


@pytest.mark.parametrize(("engine", "how"), [("none", "true"), ("none", "light"), ("zero3", "true")])
def test_recomputing_activations_changes_no_loss(gpu: GpuRanks, engine: str, how: str) -> None:
    sets = (f"parallel.deepspeed={engine}", BF16)
    less = gpu.train(recipe(), "run-less", *sets, f"model.gradient_checkpointing={how}")
    more = gpu.train(recipe(), "run-more", *sets)
    assert less.losses() == pytest.approx(more.losses(), rel=1e-2)


@needs("bitsandbytes")
def test_moments_in_8_bits_learn_as_adamw_does(gpu: GpuRanks) -> None:
    small = gpu.train(recipe(), "run-8bit", DDP, BF16, "training.optimizer=adamw_8bit")
    whole = gpu.train(recipe(), "run-adamw", DDP, BF16)
    assert small.losses() == pytest.approx(whole.losses(), rel=5e-2)
    assert small.losses()[-1] < small.losses()[0]


@needs("bitsandbytes")
@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
@pytest.mark.parametrize("engine", ["none", "zero2"])
def test_an_adapter_learns_on_a_quantized_base(gpu: GpuRanks, tmp_path: Path, quantization: str, engine: str) -> None:
    write_model(tmp_path / "base", replies=True)
    values = recipe(model={"source": str(tmp_path / "base")}, adapter={"rank": 4}, options={"max_length": 64})
    values["training"]["learning_rate"] = 1e-2
    sets = (f"parallel.deepspeed={engine}", BF16)
    packed = gpu.train(values, "run-packed", *sets, f"model.quantization={quantization}")
    whole = gpu.train(values, "run-whole", *sets)
    assert packed.losses()[0] == pytest.approx(whole.losses()[0], rel=5e-2)
    assert packed.losses()[-1] < packed.losses()[0]
    assert (packed.path / "model" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "radam", "lion", "sgd"])
def test_an_optimizer_makes_the_same_steps_under_zero3(gpu: GpuRanks, optimizer: str) -> None:
    rate = {"sgd": 0.1, "lion": 1e-4}.get(optimizer, 1e-3)
    sets = (FP32, "training.steps=6", f"training.optimizer={optimizer}", f"training.learning_rate={rate}")
    alone = gpu.train(recipe(), "run-none", DDP, *sets)
    sharded = gpu.train(recipe(), "run-zero3", "parallel.deepspeed=zero3", *sets)
    assert sharded.losses() == pytest.approx(alone.losses(), rel=1e-3)
    assert len(set(alone.losses())) == 6


@pytest.mark.parametrize("engine", ["none", "zero3"])
def test_replies_are_generated_and_judged(gpu: GpuRanks, engine: str) -> None:
    sets = (f"parallel.deepspeed={engine}", BF16, "training.steps=4", "options.reply_length=8")
    run = gpu.train(recipe(), "run-replies", *sets, "evaluation.metrics=[perplexity, chrf]", "evaluation.samples=2")
    *_, row = (row for row in run.rows if row["split"] == "validation")
    assert row["perplexity"] > 1 and 0 <= row["chrf"] <= 100


@pytest.mark.parametrize("task", ["text_classification", "token_classification", "sequence_regression", "reward_model"])
def test_batches_without_padding_have_the_losses_of_padded_ones(gpu: GpuRanks, task: str) -> None:
    (example,) = (one for one in EXAMPLES if one.task == task)
    values = example.recipe(gpu.folder)
    values |= {
        "training": {"steps": 4, "global_batch": 8, "learning_rate": example.learning_rate / 4, "precision": "fp32"},
        "tracking": {"wandb": "off", "log_every": 1},
    }
    free = gpu.train(values, "run-free", "data.packing=padding_free")
    padded = gpu.train(values, "run-padded", "data.packing=none")
    assert free.plan("training")["packing"] == "padding_free"
    assert free.losses() == pytest.approx(padded.losses(), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("precision", [FP32, BF16])
def test_stages_on_a_shared_gpu_have_the_losses_of_one_rank(gpu: GpuRanks, precision: str) -> None:
    """Activations and gradients travel over gloo, which takes no tensor from a GPU."""
    values = picture_recipe(pipeline=2, training={"steps": 4})
    values["training"].pop("precision", None)
    two = gpu.train(values, "run-two", precision, ranks=2)
    one = gpu.train(values, "run-one", precision, "parallel.pipeline=1")
    assert two.losses() == pytest.approx(one.losses(), rel=1e-3 if precision == FP32 else 5e-2)
    assert all(map(math.isfinite, two.losses("validation")))


def test_matrices_on_a_shared_gpu_have_the_losses_of_one_rank(gpu: GpuRanks) -> None:
    sets = (FP32, "training.steps=6", "model.kernels=none")
    two = gpu.train(recipe(), "run-two", *sets, "parallel.deepspeed=zero1", "parallel.tensor=2", ranks=2)
    one = gpu.train(recipe(), "run-one", *sets, DDP)
    assert two.losses() == pytest.approx(one.losses(), rel=1e-3)


def test_statistics_over_ranks_that_share_a_gpu_are_those_of_one(gpu: GpuRanks) -> None:
    """BatchNorm over all ranks: all_gather and all_reduce of a GPU's tensors over gloo."""
    values = picture_recipe(pipeline=1, training={"steps": 4})
    values["training"].pop("precision", None)
    sets = (FP32, "model.batch_norm=synchronized", "parallel.micro_batch=24")
    two, one = gpu.train(values, "run-two", *sets, ranks=2), gpu.train(values, "run-one", *sets)
    assert two.losses() == pytest.approx(one.losses(), rel=1e-3)


def test_memory_energy_and_the_share_of_the_peak_are_measured(gpu: GpuRanks) -> None:
    run = gpu.train(recipe(), "run-figures", DDP, BF16)
    rows = [row for row in run.rows if row["split"] == "train"]
    assert len(rows) == STEPS
    assert all(10 * 2**20 < row["memory_bytes"] < 8 * 2**30 for row in rows), rows[-1]
    joules = [row["energy_joules"] for row in rows if "energy_joules" in row]
    assert joules == sorted(joules) and len(joules) == STEPS, joules
    assert 0 < joules[-1] < 1e6
    report = (run.path / "report.html").read_text()
    assert "of 989 TFLOP/s" in report or "no peak is known for" in report
