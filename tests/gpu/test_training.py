"""On CUDA: the whole command trains under DDP, ZeRO-2, ZeRO-3 and offload in bf16, and the losses agree."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).resolve().parents[2]
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


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    rows = [
        {"prompt": f"What is {n} plus {n}?", "completion": f"It is {2 * n}, as anyone can count."} for n in range(80)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "gpu.yaml").write_text(RECIPE)
    return folder / "gpu.yaml"


def losses(recipe, name, **sets):
    run = recipe.parent / name
    command = [sys.executable, "-m", "finetune", "train", str(recipe), "--run-dir", str(run)]
    for key, value in sets.items():
        command += ["--set", f"{key.replace('__', '.')}={value}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=os.environ.copy(), check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["split"] == "train"]


@pytest.mark.timeout(900)
def test_engines_agree_on_a_gpu(recipe):
    found = {
        name: losses(recipe, name, parallel__deepspeed=name, training__precision="bf16")
        for name in ("none", "zero2", "zero3", "zero2_offload")
    }
    for name, values in found.items():
        assert len(values) == 12
        assert values[-1] < values[0]
        assert values == pytest.approx(found["none"], rel=3e-2), name


@pytest.mark.timeout(600)
def test_float32_on_a_gpu_is_float32_on_the_cpu(recipe, monkeypatch):
    on_gpu = losses(recipe, "cuda-fp32", parallel__deepspeed="zero2", training__precision="fp32")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    on_cpu = losses(recipe, "cpu-fp32", parallel__deepspeed="zero2", training__precision="fp32")
    assert on_gpu == pytest.approx(on_cpu, rel=2e-3)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_overlapping_communication_changes_no_loss(recipe, stage):
    """On streams of their own; several GPUs take part where there are several."""
    written = json.loads((ROOT / "ds_configs" / f"{stage}.json").read_text())
    found = {}
    for overlap in (True, False):
        written["zero_optimization"] |= {"overlap_comm": overlap, "reduce_bucket_size": 20_000}
        (recipe.parent / f"{stage}-{overlap}.json").write_text(json.dumps(written))
        found[overlap] = losses(
            recipe,
            f"{stage}-overlap-{overlap}",
            parallel__deepspeed=recipe.parent / f"{stage}-{overlap}.json",
            training__precision="fp32",
        )
    assert found[True] == pytest.approx(found[False], rel=1e-5)


@pytest.mark.timeout(300)
def test_rows_tell_computing_from_waiting_on_a_gpu(recipe):
    losses(recipe, "traced", parallel__deepspeed="zero2")
    rows = [json.loads(line) for line in (recipe.parent / "traced" / "metrics.jsonl").read_text().splitlines()]
    told = [row for row in rows if row["split"] == "train"][-1]
    assert told["compute_seconds"] > 0
    assert told["host_seconds"] > 0
    parts = ("compute_seconds", "communication_seconds", "slowest_seconds", "host_seconds", "data_seconds")
    assert sum(told[part] for part in parts) == pytest.approx(told["step_seconds"], rel=0.05)
