"""On CUDA: language models train under DDP, ZeRO-1, 2, 3 and offload in bf16, and the losses agree."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(170)]
ROOT = Path(__file__).resolve().parents[2]
STEPS = 12
RECIPE = """
name: gpu
task: causal_lm
model: {source: llama, init: config, tokenizer: "train:512", config: {hidden_size: 128, intermediate_size: 256,
  num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2, max_position_embeddings: 256}}
data: {train: rows.jsonl, validation_fraction: 0.2}
options: {max_length: 128}
training: {steps: 12, global_batch: 8, learning_rate: 1.0e-3}
evaluation: {samples: 1}
tracking: {wandb: "off", log_every: 1}
"""


@pytest.fixture(autouse=True)
def _rows(tmp_path):
    rows = [
        {"prompt": f"What is {n} plus {n}?", "completion": f"It is {2 * n}, as anyone can count."} for n in range(80)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "gpu.yaml").write_text(RECIPE)


def train(gpu, name, ranks=1, **sets):
    """The rows of the training split of a run in the folder `run-NAME`. ranks: all of them on the first GPU."""
    changes = [f"{key.replace('__', '.')}={value}" for key, value in sets.items()]
    trained = gpu.train(yaml.safe_load(RECIPE), f"run-{name}", *changes, ranks=ranks)
    return [row for row in trained.rows if row["split"] == "train"]


def losses(gpu, name, ranks=1, **sets):
    return [row["loss"] for row in train(gpu, name, ranks, **sets)]


def command_losses(folder, name, **sets):
    """Losses of the command that a user types: a process that supervises the ranks."""
    run = folder / name
    command = [sys.executable, "-m", "finetune", "train", str(folder / "gpu.yaml"), "--run-dir", str(run)]
    for key, value in sets.items():
        command += ["--set", f"{key.replace('__', '.')}={value}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=160, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
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
def test_offload_agrees_with_ddp_in_bf16(tmp_path):
    """DeepSpeed compiles its CPU optimizer first, which takes minutes."""
    done = subprocess.run([sys.executable, "-m", "finetune", "doctor", "--build"], check=False, timeout=600)
    assert done.returncode == 0
    values = command_losses(tmp_path, "offload", parallel__deepspeed="zero2_offload", training__precision="bf16")
    ddp = command_losses(tmp_path, "ddp", parallel__deepspeed="none", training__precision="bf16")
    assert values == pytest.approx(ddp, rel=3e-2)


def test_float32_on_a_gpu_is_float32_on_the_cpu(tmp_path, monkeypatch):
    on_gpu = command_losses(tmp_path, "cuda-fp32", parallel__deepspeed="none", training__precision="fp32")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    on_cpu = command_losses(tmp_path, "cpu-fp32", parallel__deepspeed="none", training__precision="fp32")
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
