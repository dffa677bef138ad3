"""A DeepSpeed JSON never changes the mathematics in silence: what contradicts the recipe is told, all of it at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.app.recipes import resolve_recipe
from finetune.errors import RecipeFaults, UserError
from finetune.planning.batch import plan_batch
from finetune.planning.deepspeed import resolve_deepspeed_config
from finetune.recipe.deepspeed import (
    DERIVED,
    Asked,
    config_faults,
    outside_writers,
    read_deepspeed_config,
    rounding_keys,
)
from finetune.recipe.shelf import list_deepspeed_configs

ASKED = Asked(max_grad_norm=1.0, global_batch=32, micro_batch=8, precisions=("fp32",))


def faults(config: dict[str, Any], asked: Asked = ASKED) -> dict[str, str]:
    return {fault.key: fault.message for fault in config_faults(config, asked, where="zero.json")}


@pytest.mark.parametrize(
    ("written", "key"),
    [
        ({"optimizer": {"type": "Adam"}}, "optimizer"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto"}}}, "optimizer"),
        ({"tensor_parallel": {"autotp_size": 2}}, "tensor_parallel"),
        ({"gradient_clipping": 0.5}, "gradient_clipping"),
        ({"train_batch_size": 64}, "train_batch_size"),
        ({"train_micro_batch_size_per_gpu": 4}, "train_micro_batch_size_per_gpu"),
        ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps"),
        ({"bf16": {"enabled": True}}, "bf16.enabled"),
        ({"bf16": {"bf16_optimizer_states": True}}, "bf16.bf16_optimizer_states"),
        ({"fp16": {"auto_cast": True}}, "fp16.auto_cast"),
        ({"amp": {"enabled": True}}, "amp.enabled"),
        ({"torch_autocast": {"enabled": True}}, "torch_autocast.enabled"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "data_types.grad_accum_dtype"),
        ({"prescale_gradients": True}, "prescale_gradients"),
        ({"gradient_predivide_factor": 2.0}, "gradient_predivide_factor"),
        ({"gradient_allreduce_op": "sum"}, "gradient_allreduce_op"),
        ({"communication_data_type": "fp16"}, "communication_data_type"),
        ({"sparse_gradients": True}, "sparse_gradients"),
        ({"progressive_layer_drop": {"enabled": True}}, "progressive_layer_drop.enabled"),
        ({"zero_optimization": {"compute_grad_norm": False}}, "zero_optimization.compute_grad_norm"),
        ({"zero_optimization": {"zenflow": {"topk_ratio": 0.1}}}, "zero_optimization.zenflow"),
        ({"zero_optimization": {"zero_hpz_partition_size": "auto"}}, "zero_optimization.zero_hpz_partition_size"),
        ({"zero_optimization": 2}, "zero_optimization"),
        ({"gradient_cliping": 0.5}, "gradient_cliping"),
    ],
)
def test_each_contradiction_is_a_fault(written: dict[str, Any], key: str) -> None:
    assert list(faults(written)) == [key]


def test_what_says_the_same_as_the_recipe_or_nothing_is_none() -> None:
    same = {
        "gradient_clipping": 1, "train_batch_size": 32, "train_micro_batch_size_per_gpu": 8,
        "gradient_accumulation_steps": "auto", "bf16": {"enabled": False}, "fp16": {"enabled": "auto", "loss_scale": 0},
        "prescale_gradients": False, "gradient_predivide_factor": 1, "communication_data_type": None,
        "wall_clock_breakdown": True, "optimizer": "auto", "amp": {"enabled": False},
        "zero_optimization": {"stage": 3, "sub_group_size": "auto"},
    }  # fmt: skip
    assert faults(same) == {}
    assert "gradient_clipping" in faults(same, Asked(0.5, 32, 8, ("fp32",)))
    assert "train_micro_batch_size_per_gpu" in faults(same, Asked(1.0, 32, None, ("fp32",)))


def test_a_precision_that_the_machine_decides() -> None:
    undecided = Asked(1.0, 32, None, ("bf16", "fp32"))
    assert faults({"bf16": {"enabled": True}}, undecided) == faults({"bf16": {"enabled": False}}, undecided) == {}
    assert "fp16.enabled" in faults({"fp16": {"enabled": True}}, undecided)


@pytest.mark.parametrize("name", list_deepspeed_configs())
def test_every_file_that_ships_passes(name: str) -> None:
    for precision in ("fp32", "bf16"):
        loaded = resolve_recipe("quickstart", [f"parallel.deepspeed={name}", f"training.precision={precision}"])
        notes = [note for note in loaded.warnings if "rounds what travels" in note]
        assert len(notes) == (name == "zero3_quantized")


def test_planning_derives_what_the_check_admits() -> None:
    """Every key that may say "auto" gets a value, the ones that the recipe decides apart."""
    written: dict[str, Any] = {"zero_optimization": {"stage": 3}}
    for key in DERIVED:
        section, _, leaf = key.rpartition(".")
        (written.setdefault(section, {}) if section else written)[leaf] = "auto"
    assert faults(written) == {}
    options = {"batch": plan_batch(32, 4, "auto", 16), "precision": "bf16", "max_grad_norm": 0.5}
    assert '"auto"' not in json.dumps(resolve_deepspeed_config(written, **options))


def test_all_of_a_file_is_reported_before_the_launch_with_file_and_key(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"gradient_clipping": 0.5, "optimizer": {"type": "Lion"}, "prescale_gradients": True}))
    with pytest.raises(RecipeFaults) as told:
        resolve_recipe("quickstart", [f"parallel.deepspeed={file}", "training.warmup=1.5"])
    assert [(fault.where, fault.key) for fault in told.value.faults if fault.where == str(file)] == [
        (str(file), "optimizer"), (str(file), "gradient_clipping"), (str(file), "prescale_gradients"),
    ]  # fmt: skip
    assert len(told.value.faults) == 4  # with the recipe's own
    assert "training.max_grad_norm: 0.5" in str(told.value)


@pytest.mark.parametrize("text", ['{\n "zero_optimization": {\n "stage": }\n}', "[]"])
def test_broken_json_is_reported_with_its_line(text: str, tmp_path: Path) -> None:
    file = tmp_path / "zero.json"
    file.write_text(text)
    with pytest.raises(UserError) as told:
        read_deepspeed_config(file)
    assert told.value.where == (f"{file}:3" if "\n" in text else str(file))
    with pytest.raises(RecipeFaults, match=r"zero\.json"):
        resolve_recipe("quickstart", [f"parallel.deepspeed={file}"])


def test_what_rounds_is_named() -> None:
    assert rounding_keys({"zero_optimization": {"zero_quantized_weights": True}}) == ["zero_quantized_weights"]
    assert rounding_keys({"zero_optimization": 1}) == rounding_keys({}) == []


def test_what_deepspeed_writes_outside_of_the_run_folder_is_told_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "zero.json"
    file.write_text(
        json.dumps({
            "zero_optimization": {"stage": 2},
            "tensorboard": {"enabled": True, "output_path": "tb/", "job_name": "one"},
            "csv_monitor": {"enabled": True},
            "comet": {"enabled": False},
            "wandb": {"enabled": True, "project": "mine"},
            "flops_profiler": {"enabled": True, "output_file": "flops.txt"},
        })
    )  # fmt: skip
    [warning] = resolve_recipe("quickstart", [f"parallel.deepspeed={file}"]).warnings
    told = "tensorboard (to tb/one), csv_monitor (to DeepSpeedJobName), wandb (to a W&B run of its own), "
    told += "flops_profiler (to flops.txt)"
    assert f"{file} has DeepSpeed write outside of the run folder: {told};" in warning
    assert outside_writers({"tensorboard": {"output_path": "tb"}, "flops_profiler": {"enabled": True}}) == []
