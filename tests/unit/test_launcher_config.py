"""What `accelerate launch` says beside a recipe: it is reported, and taken away before Accelerate is opened."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from finetune.app.workers.launcher_config import compare_ranks, compare_with_launcher
from finetune.distributed.engines.accelerator import forget_choices


def plan(**values: Any) -> Any:
    recipe = SimpleNamespace(
        training=SimpleNamespace(global_batch=32), parallel=SimpleNamespace(micro_batch="auto", processes=2)
    )
    fixed = {"engine": "deepspeed", "precision": "fp32", "deepspeed": {}, "recipe": recipe, "ranks": 2}
    return SimpleNamespace(**{**fixed, **values})


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, []),
        ({"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO", "ACCELERATE_USE_FSDP": "false"}, []),
        ({"ACCELERATE_USE_FSDP": "true"}, ["started with FSDP, the recipe trains with deepspeed"]),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, ["started with Megatron-LM"]),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, ["says bf16, the recipe fp32"]),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, ["torch.compile by inductor"]),
        (
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
            ["zero_optimization.stage: accelerate's configuration says 3, the recipe none"],
        ),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1"}, []),
        (
            {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
            [
                "gradient_accumulation_steps: accelerate's configuration says 4; the recipe decides: training.global_batch 32"
            ],
        ),
    ],
)
def test_every_difference_is_one_line(environment: dict[str, str], said: list[str]) -> None:
    lines = compare_with_launcher(environment, plan())
    assert len(lines) == len(said) and all(word in line for word, line in zip(said, lines, strict=True)), lines


def test_batch_sizes_of_a_deepspeed_file_are_told_unless_they_are_auto_or_the_recipes(tmp_path: Any) -> None:
    sizes = {"train_batch_size": 32, "train_micro_batch_size_per_gpu": 7, "gradient_accumulation_steps": "auto"}
    (tmp_path / "ds.json").write_text(json.dumps(sizes))
    environment = {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(tmp_path / "ds.json"),
    }
    (line,) = compare_with_launcher(environment, plan())
    assert "train_micro_batch_size_per_gpu: accelerate's configuration says 7" in line


@pytest.mark.parametrize(("asked", "told"), [(2, 0), ("auto", 0), (3, 1)])
def test_another_number_of_ranks_than_the_recipe_asks_for_is_told(asked: Any, told: int) -> None:
    given = plan()
    given.recipe.parallel.processes = asked
    lines = compare_ranks(given)
    assert len(lines) == told and all("the recipe says 3, the launcher started 2" in line for line in lines)


def test_a_deepspeed_file_that_cannot_be_read_is_no_error(tmp_path: Any) -> None:
    (tmp_path / "broken.json").write_text("{")
    environment = {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(tmp_path / "broken.json"),
    }
    assert compare_with_launcher(environment, plan()) == []


def test_what_accelerate_chose_is_forgotten_and_the_rest_stays() -> None:
    kept = {"RANK": "0", "HOME": "/x", "ACCELERATE_TORCH_DEVICE": "cpu", "NCCL_DEBUG": "INFO"}
    environment = {
        **kept,
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "ACCELERATE_CONFIG_DS_FIELDS": "zero_stage",
    }
    forget_choices(environment)
    assert environment == kept
