"""On CUDA: language models train under DDP, ZeRO-1, 2, 3 and offload in bf16, and the losses agree."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.language_model import RECIPE, STEPS, recipe, write_rows

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(170)]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _rows(tmp_path):
    write_rows(tmp_path)
    (tmp_path / "gpu.yaml").write_text(RECIPE)


def train(gpu, name, ranks=1, **sets):
    """The rows of the training split of a run in the folder `run-NAME`. ranks: all of them on the first GPU."""
    changes = [f"{key.replace('__', '.')}={value}" for key, value in sets.items()]
    trained = gpu.train(recipe(), f"run-{name}", *changes, ranks=ranks)
    return [row for row in trained.rows if row["split"] == "train"]


def losses(gpu, name, ranks=1, **sets):
    return [row["loss"] for row in train(gpu, name, ranks, **sets)]


def start_command(folder, name, environment, **sets):
    """The command that a user types: a process that supervises the ranks."""
    command = [sys.executable, "-m", "finetune", "train", str(folder / "gpu.yaml"), "--run-dir", str(folder / name)]
    for key, value in sets.items():
        command += ["--set", f"{key.replace('__', '.')}={value}"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **environment}
    )


def command_losses(process, run):
    said, _ = process.communicate(timeout=160)
    assert process.returncode == 0, said
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["split"] == "train"]


@pytest.mark.parametrize("engine", ["zero1", "zero2", "zero3"])
def test_an_engine_agrees_with_ddp_in_bf16(gpu, engine):
    values = losses(gpu, engine, parallel__deepspeed=engine, training__precision="bf16")
    ddp = losses(gpu, "none", parallel__deepspeed="none", training__precision="bf16")
    assert len(values) == STEPS and values[-1] < values[0]
    assert values == pytest.approx(ddp, rel=3e-2)


@pytest.mark.parametrize("engine", ["none", "zero1", "zero2", "zero3"])
def test_two_ranks_that_share_a_gpu_are_one(gpu, engine):
    """Over gloo, because NCCL refuses a GPU that another rank has."""
    two = losses(gpu, "two", 2, parallel__deepspeed=engine, training__precision="fp32")
    one = losses(gpu, "one", parallel__deepspeed="none", training__precision="fp32")
    assert two == pytest.approx(one, rel=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_offload_agrees_with_ddp_in_bf16(gpu):
    """DeepSpeed compiles its CPU optimizer first, which takes minutes."""
    done = subprocess.run([sys.executable, "-m", "finetune", "doctor", "--build"], check=False, timeout=600)
    assert done.returncode == 0
    values = losses(gpu, "offload", parallel__deepspeed="zero2_offload", training__precision="bf16")
    ddp = losses(gpu, "none", parallel__deepspeed="none", training__precision="bf16")
    assert values == pytest.approx(ddp, rel=3e-2)


def test_float32_on_a_gpu_is_float32_on_the_cpu(tmp_path):
    """Two commands, side by side."""
    sets = {"parallel__deepspeed": "none", "training__precision": "fp32"}
    cpu = start_command(tmp_path, "cpu", {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}, **sets)
    gpu = start_command(tmp_path, "gpu", {}, **sets)
    try:
        on_gpu, on_cpu = command_losses(gpu, tmp_path / "gpu"), command_losses(cpu, tmp_path / "cpu")
    finally:
        cpu.kill()
        gpu.kill()
    assert json.loads((tmp_path / "gpu" / "plan.json").read_text())["machine"]["device"] == "cuda"
    assert on_gpu == pytest.approx(on_cpu, rel=2e-3)


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_overlapping_communication_changes_no_loss(gpu, stage):
    """On streams of their own; several GPUs take part where there are several."""
    written = json.loads((ROOT / "ds_configs" / f"{stage}.json").read_text())
    found = {}
    for overlap in (True, False):
        written["zero_optimization"] |= {"overlap_comm": overlap, "reduce_bucket_size": 20_000}
        (gpu.folder / f"{stage}-{overlap}.json").write_text(json.dumps(written))
        found[overlap] = losses(
            gpu,
            f"{stage}-overlap-{overlap}",
            parallel__deepspeed=gpu.folder / f"{stage}-{overlap}.json",
            training__precision="fp32",
        )
    assert found[True] == pytest.approx(found[False], rel=1e-5)


@pytest.mark.parametrize("engine", ["none", "zero2"])
def test_rows_divide_a_step_into_computing_and_waiting(gpu, engine):
    row = train(gpu, "traced", parallel__deepspeed=engine)[-1]
    assert row["compute_seconds"] > 0
    assert row["host_seconds"] > 0
    parts = ("compute_seconds", "communication_seconds", "slowest_seconds", "host_seconds", "data_seconds")
    assert sum(row[part] for part in parts) == pytest.approx(row["step_seconds"], rel=0.05)


@pytest.mark.parametrize(
    "changes",
    [
        {"adapter__rank": 8},
        {"data__packing": "packed", "data__capacity": 256, "model__gradient_checkpointing": "true"},
        {"training__precision": "fp16"},
        {"model__dtype": "bfloat16"},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_it_learns(gpu, changes):
    values = losses(gpu, "learns", **changes)
    assert values[-1] < values[0]
    assert (gpu.folder / "run-learns" / "model").is_dir()


def test_micro_batches_are_measured(gpu):
    """A step of 8 short rows: some size between one row of 128 tokens and all of them."""
    measured = losses(gpu, "measured", training__precision="fp32")
    plan = json.loads((gpu.folder / "run-measured" / "plan.json").read_text())
    assert plan["training"]["capacity"] == 128 <= plan["machine"]["capacity"] <= 1024
    assert losses(gpu, "given", training__precision="fp32", data__capacity=128) == pytest.approx(measured, rel=1e-4)


def test_weights_drawn_on_the_gpu_are_the_same_under_every_stage(gpu):
    drawn = {"model__init_device": "gpu", "training__steps": 3}
    first = train(gpu, "drawn-none", parallel__deepspeed="none", **drawn)
    for stage in ("zero2", "zero3"):
        other = train(gpu, f"drawn-{stage}", parallel__deepspeed=stage, **drawn)
        assert other[0]["loss"] == pytest.approx(first[0]["loss"], rel=2e-3), stage
