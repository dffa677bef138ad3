"""Proves `finetune verify` for every task: each layout agrees with the plain float64 loop, and what differs is named."""

import json
import math
import os
from contextlib import ExitStack
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from finetune.app.rounding import read_twins
from finetune.app.verify import TOLERANCE, compare_all, derive_recipe, excuse, open_for_cpu, read_figures
from finetune.distributed.launch import SUPERVISED
from finetune.recipe.optimizers import OPTIMIZERS
from finetune.recipe.recipe import recipe_type
from finetune.tasks import CARDS
from finetune.tracking.run import recipe_text
from tests.contract.examples import EXAMPLES
from tests.e2e import tiny
from tests.e2e.conftest import MINUTES
from tests.faults import run_finetune

pytestmark = pytest.mark.timeout(900)
STEPS = 3
LORA = {"rank": 4}


def work_here(folder, spoilt):
    """On a rank: as `finetune verify` does there. spoilt: variants under which every loss is scaled wrongly."""
    from finetune.app.workers import verify as variants
    from finetune.training import loop

    real, now = variants.run_variant, {"name": ""}
    real_step = loop.train_step

    def run_variant(recipe, variant, *rest, **options):
        now["name"] = variant.name
        return real(recipe, variant, *rest, **options)

    def train_step(task, artifacts, engine, batches, **options):
        if now["name"] not in spoilt:
            return real_step(task, artifacts, engine, batches, **options)
        backward = engine.backward
        with mock.patch.object(engine, "backward", lambda loss: backward(loss * 1.001)):
            return real_step(task, artifacts, engine, batches, **options)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(variants, "run_variant", run_variant))
        stack.enter_context(mock.patch.object(loop, "train_step", train_step))
        variants.work(recipe=f"{folder}/recipe.yaml")


@pytest.fixture
def verify(pool, tmp_path):
    """Derive, train under every layout on two forked ranks, compare: {variant: difference}, figures of all."""

    def run(values, *, spoilt=(), steps=STEPS, again=()):
        """steps: that there are to compare, of STEPS that are asked for. again: layouts that are computed in float64, too."""
        folder = tmp_path / "verify"
        (folder / "predictions").mkdir(parents=True)
        recipe = recipe_type(CARDS[values["task"]])(**values)
        (folder / "recipe.yaml").write_text(recipe_text(derive_recipe(recipe, full=False)))
        (folder / "verify.json").write_text(json.dumps({"full": False, "steps": STEPS}))
        logs = {SUPERVISED: str(folder / "logs"), "DS_ACCELERATOR": "cpu"}
        pool.options(environment=logs).run(2, work_here, str(folder), spoilt)
        figures = read_figures(folder)
        assert len(figures[0]["losses"]) == steps and all(map(math.isfinite, figures[0]["losses"]))
        if again:
            (folder / "verify.json").write_text(json.dumps({"full": False, "steps": STEPS, "differing": again}))
            pool.options(environment=logs).run(2, work_here, str(folder), spoilt)
            twins = read_twins(folder)
            differences = compare_all(figures, folder)
            return excuse(differences, figures, twins, folder), {twin.layouts: twin for twin in twins}
        return compare_all(figures, folder), {one["name"]: one for one in figures}

    return run


def learning(values, rate=1e-3):
    return {**values, "training": {"precision": "fp32", "global_batch": 6, "learning_rate": rate, "epochs": 4}}


def test_every_task_is_verified():
    assert {example.task for example in EXAMPLES} == set(CARDS)


@pytest.mark.parametrize("number", range(len(EXAMPLES)), ids=lambda number: f"{EXAMPLES[number].task}-{number}")
def test_layouts_do_not_change_the_numbers(number, verify, tmp_path):
    # A detector from random weights has gradients of 1000: at 1e-3 it would show nothing but chaos.
    rate = 1e-5 if EXAMPLES[number].task == "object_detection" else 1e-3
    differences, figures = verify(learning(EXAMPLES[number].recipe(tmp_path), rate))
    refused = [name for name, variant in figures.items() if variant["refused"]]
    assert not refused, figures
    assert ("2 stages" in figures) == (EXAMPLES[number].task == "image_classification")
    # What float32 does to the plain loop depends on the version of torch: detectors differ by up to 1.4e-5 with 2.11.
    allowed = max(TOLERANCE, 2 * differences["reference32"].largest)
    for name, difference in differences.items():
        assert not difference.first, (name, difference)
        assert difference.largest <= allowed, (name, difference)
    assert allowed < 5 * TOLERANCE
    assert figures["reference"]["evaluation"]["loss"] > 0
    assert len({variant["digest"] for variant in figures.values()}) > 2, "layouts round differently: all really ran"


@pytest.mark.parametrize("task", ["text_classification", "causal_lm"])
def test_with_an_adapter(task, verify, tmp_path):
    example = next(example for example in EXAMPLES if example.task == task)
    differences, _ = verify(learning(example.recipe(tmp_path, adapter=LORA)))
    assert len(differences) == 9 and not any(difference.first for difference in differences.values()), differences


@pytest.mark.parametrize("packing", ["packed", "padding_free"])
def test_with_packing(packing, verify, tmp_path):
    example = next(example for example in EXAMPLES if example.task == "causal_lm")
    values = learning(example.recipe(tmp_path))
    values["data"] = {**values["data"], "packing": packing}
    differences, _ = verify(values)
    assert len(differences) == 9 and not any(difference.first for difference in differences.values()), differences


@pytest.mark.parametrize("optimizer", ["deepspeed_cpu_adam", "radam", "lion", "adam", "sgd"])
def test_with_every_optimizer_that_runs_here(optimizer, verify, tmp_path):
    """DeepSpeed's own kernels are compared with torch's same update in the plain loop."""
    assert {spec.name for spec in OPTIMIZERS.values() if spec.device != "cuda" and not spec.scales} == {
        "adamw", "deepspeed_cpu_adam", "radam", "lion", "adam", "sgd",
    }  # fmt: skip
    example = next(example for example in EXAMPLES if example.task == "text_classification")
    values = learning(example.recipe(tmp_path))
    values["training"] |= {"optimizer": optimizer, "weight_decay": 0.1}
    differences, figures = verify(values)
    assert len(differences) == 9 and not any(figure["refused"] for figure in figures.values())
    assert not any(difference.first for difference in differences.values()), differences


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize(("optimizer", "stand_in"), [("deepspeed_adam", "adamw"), ("deepspeed_lion", "lion")])
def test_an_optimizer_that_needs_cuda_is_stood_in_for_and_that_is_told(workplace, optimizer, stand_in, capsys):
    loaded = open_for_cpu(str(workplace / "tiny.yaml"), [f"training.optimizer={optimizer}"])
    assert loaded.recipe.training.optimizer == stand_in
    assert f"{optimizer} needs CUDA; {stand_in}, which makes the same update" in capsys.readouterr().out


def test_an_optimizer_that_rounds_its_state_is_stood_in_for_and_that_is_reported(workplace, capsys):
    changes = ["training.optimizer=adamw_8bit", "parallel.deepspeed=none"]
    assert open_for_cpu(str(workplace / "tiny.yaml"), changes).recipe.training.optimizer == "adamw"
    assert "adamw_8bit" in capsys.readouterr().out


def test_float8_is_left_out_and_that_is_reported(workplace, capsys):
    loaded = open_for_cpu(str(workplace / "tiny.yaml"), ["model.float8=tensorwise", "training.precision=bf16"])
    assert (loaded.recipe.model.float8, loaded.recipe.training.precision) == ("none", "fp32")
    assert "float8 rounds products to 8 bits" in capsys.readouterr().out


SLICED = [number for number, example in enumerate(EXAMPLES) if "tensor" in CARDS[example.task].model.splits]


def test_every_task_that_says_so_is_sliced():
    assert {EXAMPLES[number].task for number in SLICED} == {"causal_lm", "reward_model", "preference"}


@pytest.mark.parametrize("number", SLICED, ids=lambda number: f"{EXAMPLES[number].task}-{number}")
def test_with_matrices_shared_by_two_ranks(number, verify, tmp_path):
    values = learning(EXAMPLES[number].recipe(tmp_path))
    values["parallel"] = {"deepspeed": "zero1", "tensor": 2}
    differences, figures = verify(values)
    assert "2 ranks, tensor parallel 2" in differences and not any(figure["refused"] for figure in figures.values())
    assert len(differences) == 10 and not any(difference.first for difference in differences.values()), differences


def test_a_recipe_of_fewer_steps_is_compared_over_these(verify, tmp_path):
    example = next(example for example in EXAMPLES if example.task == "text_classification")
    values = learning(example.recipe(tmp_path))
    del values["training"]["epochs"]
    values["training"]["steps"] = 2
    differences, figures = verify(values, steps=2)
    assert {len(one["losses"]) for one in figures.values()} == {2}
    assert not any(difference.first for difference in differences.values()), differences


@pytest.mark.parametrize("task", ["causal_lm", "image_classification"])
def test_a_loss_scaled_wrongly_is_no_rounding(task, verify, tmp_path):
    """It is found and named, and float64, in which its division is exact, does not excuse it."""
    example = next(example for example in EXAMPLES if example.task == task)
    spoilt = "2 ranks, ZeRO-1"
    differences, twins = verify(learning(example.recipe(tmp_path)), spoilt=(spoilt,), again=(spoilt,))
    assert [name for name, difference in differences.items() if difference.first] == [spoilt]
    found = differences[spoilt]
    assert found.first.startswith("step 1: the gradient norm is") and found.largest > 5e-4, found
    (twin,) = twins.values()
    assert not twin.refused
    folder = tmp_path / "verify"
    reference = json.loads((folder / "reference.json").read_text())
    assert twin.float64["norms"] == pytest.approx(reference["norms"], rel=1e-6)
    weights = load_file(folder / f"{twin.float64['name']}.safetensors")
    assert {weight.dtype for weight in weights.values() if weight.is_floating_point()} == {torch.float64}


def test_the_command_prints_a_table_and_a_verdict(workplace):
    tiny.write_recipe(workplace, "verified.yaml")
    finished = run_finetune(["verify", "verified.yaml", "--steps", "2"], MINUTES, folder=workplace)
    assert finished.code == 0, finished.output
    for layout in ("1 rank", "2 ranks, accumulation", *(f"2 ranks, ZeRO-{stage}" for stage in range(4))):
        (row,) = [line for line in finished.output.splitlines() if line.startswith(f"{layout}\t")]
        assert row.endswith("same")
    assert (
        "8 layouts and the reference agree" in finished.output
        and "layout\tloss 1\tloss 2\tgrad norm" in finished.output
    )
    assert "without dropout" in finished.output and "plain, float64" in finished.output
    assert os.environ.get("RANK") is None
