"""Proves that each contradiction is reported at its key, that sound recipes pass, and that no fault is reported twice."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from finetune.recipe import checks, trackers
from finetune.recipe.checks import machine

from .conftest import GOOD

PIPELINE = ["task=writing", "parallel.pipeline=2", "parallel.deepspeed=none", "evaluation={}"]
CONTRADICTIONS = [
    (["training.epochs=1", "training.steps=5"], "training.steps", "one length"),
    (["training.steps=5", "training.warmup=5"], "training.warmup", "5 steps"),
    (["training.min_learning_rate=1"], "training.min_learning_rate", "above training.learning_rate"),
    (["parallel.micro_batch=64"], "parallel.micro_batch", "larger than training.global_batch (32)"),
    (["parallel.micro_batch=5", "parallel.processes=2"], "parallel.micro_batch", "not a multiple"),
    (["evaluation.metrics=[acuracy]"], "evaluation.metrics.0", "not a metric"),
    (["evaluation.metrics=[recall, loss]"], "evaluation.metrics.1", "always computed"),
    (["evaluation.best=recall"], "evaluation.best", "add it to evaluation.metrics"),
    (["evaluation.best=lost"], "evaluation.best", "not among"),
    (["data.validation=a/b", "data.validation_fraction=0.1"], "data.validation_fraction", "one source"),
    (["training.early_stopping={}", "data.validation_fraction=0"], "training.early_stopping", "needs validation"),
    (["data.columns={txt: body}"], "data.columns.txt", "not a role"),
    (["data.train={source: a/b, columns: {txt: body}}"], "data.train.columns.txt", "not a role"),
    (["parallel.deepspeed=zero9"], "parallel.deepspeed", "no such DeepSpeed"),
    (["model.source=''"], "model.source", "missing"),
    (["model.source=''", "model.init=config"], "model.source", "model type"),
    (["training.warmup=1.5"], "training.warmup", "whole number of steps"),
    (["parallel.pipeline=2"], "parallel.pipeline", "cannot be split so"),
    (
        ["task=writing", "parallel.tensor=2", "parallel.deepspeed=zero1", "parallel.processes=3", "evaluation={}"],
        "parallel.processes",
        "not a multiple",
    ),
    (["parallel.master_weights=true", "training.precision=fp16"], "parallel.master_weights", "no bfloat16 weights"),
    (["parallel.master_weights=true", "model.dtype=float32"], "parallel.master_weights", "need no masters"),
    (["model.quantization=4bit"], "model.quantization", "no adapter"),
    (["model.quantization=8bit", "adapter={}", "parallel.deepspeed=zero3"], "parallel.deepspeed", "ZeRO-3 cannot"),
    (["model.quantization=8bit", "adapter={}", "model.init=config"], "model.quantization", "no weights"),
    (["task=writing", "parallel.tensor=2", "evaluation={}"], "parallel.deepspeed", "AutoTP and ZeRO-1"),
    (
        ["task=writing", "parallel.tensor=2", "parallel.deepspeed=none", "evaluation={}"],
        "parallel.deepspeed",
        "AutoTP and ZeRO-1",
    ),
    (
        ["task=writing", "parallel.tensor=2", "parallel.deepspeed=zero1", "adapter={rank: 4}", "evaluation={}"],
        "adapter",
        "slices plain layers",
    ),
    (
        ["task=writing", "parallel.pipeline=2", "evaluation={}"],
        "parallel.deepspeed",
        "not by DeepSpeed (zero2 is the default)",
    ),
    ([*PIPELINE, "training.precision=fp16"], "training.precision", "does not scale losses"),
    ([*PIPELINE, "training.optimizer=deepspeed_cpu_adam"], "training.optimizer", "torch's optimizers"),
    (["model.init_device=gpu"], "model.init_device", "draws no weights"),
    ([*PIPELINE, "model.init=config", "model.init_device=gpu"], "model.init_device", "in main memory"),
    (["parallel.engine=dpp"], "parallel.engine", "no such engine"),
    (["parallel.engine=deepspeed", "parallel.deepspeed=none"], "parallel.engine", "parallel.deepspeed is none"),
    (["parallel.engine=ddp", "parallel.deepspeed=zero2"], "parallel.engine", "for the engine deepspeed"),
    (["parallel.engine=pipeline", "parallel.deepspeed=none"], "parallel.engine", "parallel.pipeline is 1"),
    ([*PIPELINE, "parallel.engine=ddp"], "parallel.engine", "parallel.pipeline is 2"),
    (["data.packing=packed"], "data.packing", "not supported"),
    (["task=writing", "training.label_smoothing=0.1", "evaluation={}"], "training.label_smoothing", "no labels"),
]


@pytest.mark.parametrize(("sets", "key", "words"), CONTRADICTIONS)
def test_a_contradiction_is_reported_once_at_its_key(faults, sets: list[str], key: str, words: str) -> None:
    found = faults(GOOD, *sets)
    assert set(found) == {key}
    assert words in found[key].message
    assert found[key].where.startswith(("--set ", "r.yaml:"))


def test_a_tracker_that_is_not_installed_is_reported_with_its_extra(faults, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name == "mlflow" else object())
    monkeypatch.setattr(checks, "MACHINE_CHECKS", (checks.check_trackers,))
    [fault] = faults(GOOD, "tracking.also=[tensorboard, mlflow]", here=True).values()
    assert fault.key == "tracking.also.1" and "mlflow is not installed" in fault.message
    assert "pip install 'finetune[mlflow]'" in fault.allowed


def test_every_check_of_the_package_runs() -> None:
    assert len(CONTRADICTIONS) >= 29
    listed = {check.__name__ for check in checks.RECIPE_CHECKS + checks.MACHINE_CHECKS}
    defined = set()
    for file in Path(checks.__file__).parent.glob("*.py"):
        nodes = ast.parse(file.read_text(encoding="utf-8")).body
        defined |= {node.name for node in nodes if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")}
    assert listed == defined
    assert len(listed) == 28


@pytest.mark.parametrize(
    "sets",
    [
        ["training.steps=5"],
        ["training.warmup=10"],
        ["parallel.micro_batch=5"],  # the number of ranks is not known yet
        ["parallel.micro_batch=8", "parallel.processes=2"],
        ["parallel.processes=7"],  # micro_batch: auto distributes any batch over any number of ranks
        ["evaluation.metrics=[recall]"],
        ["evaluation.best=loss"],
        ["data.columns={label: stars}"],
        ["data.validation=a/b", "data.validation_fraction=0"],
        ["parallel.deepspeed=none"],
        ["parallel.engine=ddp"],  # zero2 is only the default
        ["parallel.engine=deepspeed"],
        [*PIPELINE, "parallel.engine=pipeline"],
        PIPELINE,
        ["model.init=config", "model.source=llama"],
        ["training.label_smoothing=0.1"],
        ["training.early_stopping={patience: 2}"],
    ],
)
def test_sound_recipes_pass(load, sets: list[str]) -> None:
    assert load(GOOD, *sets).recipe.name == "good"


def test_columns_the_wrong_way_round_are_recognized(faults) -> None:
    fault = faults(GOOD, "data.columns={body: text}")["data.columns.body"]
    assert "text: body" in fault.nearest


def test_best_falls_back_to_loss_where_its_metric_is_not_computed(load) -> None:
    assert load(GOOD, "evaluation.metrics=[recall]").recipe.evaluation.best == "loss"


def test_contradictions_are_reported_with_the_other_faults(faults) -> None:
    found = faults(GOOD, "training.epochs=1", "training.steps=5", "training.weight_decay=-1", "nmae=x")
    assert set(found) == {"training.steps", "training.weight_decay", "nmae"}


def test_no_contradiction_with_a_value_that_is_itself_a_fault(faults) -> None:
    assert set(faults(GOOD, "training.global_batch=0", "parallel.micro_batch=64")) == {"training.global_batch"}
    assert set(faults(GOOD.replace("source: some", "sorce: some"), "seed=0")) == {"model.sorce"}


@pytest.mark.parametrize("precision", ["fp16", "tf32"])
def test_fp16_and_tf32_need_cuda(load, faults, monkeypatch, precision) -> None:
    monkeypatch.setattr(machine, "has_cuda", lambda: False)
    assert "needs CUDA" in faults(GOOD, f"training.precision={precision}", here=True)["training.precision"].message
    assert load(GOOD, f"training.precision={precision}", here=False)
    monkeypatch.setattr(machine, "has_cuda", lambda: True)
    assert load(GOOD, f"training.precision={precision}", here=True)


def test_fused_optimizers_need_their_device(load, faults, monkeypatch) -> None:
    monkeypatch.setattr(machine, "has_cuda", lambda: False)
    assert "needs CUDA" in faults(GOOD, "training.optimizer=deepspeed_lion", here=True)["training.optimizer"].message
    assert load(GOOD, "training.optimizer=deepspeed_cpu_adam", here=True)
    monkeypatch.setattr(machine, "has_cuda", lambda: True)
    found = faults(GOOD, "training.optimizer=deepspeed_cpu_adam", "parallel.deepspeed=none", here=True)
    assert "main memory" in found["training.optimizer"].message


def test_a_missing_file_is_reported_with_the_nearest(faults, tmp_path) -> None:
    (tmp_path / "trian.jsonl").write_text("{}\n")
    fault = faults(GOOD.replace("someone/some-data", "train.jsonl"), here=True)["data.train.source"]
    assert fault.message == "no such file"
    assert fault.where == "r.yaml:6"
    assert fault.nearest == str(tmp_path / "trian.jsonl")


def test_a_pattern_without_files_is_reported(load, faults, tmp_path) -> None:
    text = GOOD.replace("someone/some-data", "'part-*.jsonl'")
    assert faults(text, here=True)["data.train.source"].message == "matches no file"
    (tmp_path / "part-1.jsonl").write_text("{}\n")
    assert load(text, here=True)


def test_a_setting_that_is_rarely_intended_is_a_warning(load) -> None:
    warnings = load(GOOD, "adapter={}", "model.init=config", "model.trust_remote_code=true").warnings
    assert len(warnings) == 2
    assert "random weights" in warnings[0]
    assert "no effect" in load(GOOD, "data.validation_fraction=0", "evaluation.best=loss").warnings[0]


def test_a_default_that_nobody_wrote_is_no_warning(load) -> None:
    assert load(GOOD, "data.validation_fraction=0").warnings == ()


@pytest.mark.parametrize(
    ("sets", "keys"),
    [
        (["training.learning_rate=x", "training.min_learning_rate=1"], {"training.learning_rate"}),
        (["parallel.micro_batch=9", "training.global_batch=0"], {"training.global_batch"}),
        (["data.validation=[{limit: 3}]", "training.early_stopping={}"], {"data.validation.0.source"}),
        (["training.steps=3", "training.warmup=5", "seed=x"], {"training.warmup", "seed"}),
        (["training.steps=-1", "training.warmup=5"], {"training.steps"}),
    ],
)
def test_a_contradiction_with_a_faulty_value_is_not_reported_too(faults, sets: list[str], keys: set[str]) -> None:
    assert set(faults(GOOD, *sets)) == keys


def test_what_a_fault_rests_on_is_not_read_from_its_words() -> None:
    from finetune.errors import Fault
    from finetune.recipe.load import _unlike

    broken = {("training", "epochs"): Fault("", "training.epochs", "")}
    mentions = Fault("", "evaluation.best", "unlike training.epochs")
    rests = Fault("", "training.steps", "given twice", depends_on=("training.epochs",))
    section = Fault("", "training.early_stopping", "", depends_on=("training",))
    assert _unlike([mentions, rests, section], broken) == [mentions]


def test_liger_kernels_need_cuda(load, faults, monkeypatch) -> None:
    monkeypatch.setattr(machine, "has_cuda", lambda: False)
    assert "needs CUDA" in faults(GOOD, "model.kernels=liger", here=True)["model.kernels"].message
    assert load(GOOD, "model.kernels=auto", here=True) and load(GOOD, "model.kernels=liger", here=False)
    monkeypatch.setattr(machine, "has_cuda", lambda: True)
    assert load(GOOD, "model.kernels=liger", here=True)


@pytest.mark.parametrize(("written", "given"), [("epochs", "steps"), ("steps", "epochs")])
def test_an_override_of_the_length_takes_the_place_of_the_other_one_in_the_file(load, written, given) -> None:
    text = GOOD + f"    training:\n      {written}: 7\n"
    changed = load(text, f"training.{given}=5")
    training = changed.recipe.training
    assert (getattr(training, given), getattr(training, written)) == (5, None)
    (note,) = [line for line in changed.warnings if "takes the place" in line]
    assert note.startswith(f"--set training.{given} takes the place of training.{written}: 7 (r.yaml:")
    assert not [line for line in load(text, f"training.{given}=null").warnings if "takes the place" in line]


def test_validation_data_that_is_set_takes_the_place_of_the_other_kind_in_the_file(load) -> None:
    changed = load(GOOD, "data.validation=other/data")
    assert changed.recipe.data.validation_fraction == 0 and len(changed.recipe.data.validation) == 1
    assert any("--set data.validation takes the place of data.validation_fraction: 0.1" in w for w in changed.warnings)
    text = GOOD.replace("validation_fraction: 0.1", "validation: some/data")
    assert load(text, "data.validation_fraction=0.2").recipe.data.validation == ()
    assert (
        len(load(text, "data.validation_fraction=0").recipe.data.validation) == 1
    )  # what is switched off replaces nothing


def test_random_weights_in_place_of_those_of_a_run_are_told(load, tmp_path) -> None:
    (tmp_path / "run" / "model").mkdir(parents=True)
    config = ("model.source=run", "model.init=config")
    assert not load(GOOD, *config).warnings
    (tmp_path / "run" / "model" / "model.safetensors").touch()
    assert "draws random weights; those in" in load(GOOD, *config).warnings[0]
    assert not load(GOOD, "model.source=run").warnings


def test_a_learning_rate_in_the_wrong_unit_is_told(load) -> None:
    assert any("learning rate of 5 is far above" in w for w in load(GOOD, "training.learning_rate=5").warnings)
    assert not load(GOOD, "training.learning_rate=0.01").warnings
    assert not load(GOOD, "training.learning_rate=0.5", "training.optimizer=sgd").warnings


@pytest.mark.parametrize(
    ("sets", "key", "words"),
    [
        (["parallel.deepspeed=zero3"], "model.compile", "ZeRO-3 gathers"),
        (["parallel.tensor=2", "parallel.deepspeed=zero1"], "model.compile", "communicate"),
        (["model.quantization=4bit", "adapter={}"], "model.compile", "quantized"),
        (["model.gradient_checkpointing=light"], "model.gradient_checkpointing", "decides itself"),
        (["model.kernels=liger"], "model.kernels", "fuses the layers itself"),
    ],
)
def test_layers_are_not_compiled_where_that_does_not_work(faults, sets: list[str], key: str, words: str) -> None:
    assert words in faults(GOOD, "model.compile=layers", *sets)[key].message


def test_a_compiler_is_needed_on_this_machine(load, faults, monkeypatch) -> None:
    monkeypatch.setattr(machine, "has_cuda", lambda: False)
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    assert "g++" in faults(GOOD, "model.compile=layers", here=True)["model.compile"].message
    assert load(GOOD, "model.compile=layers", here=False) and load(GOOD, here=True)
    monkeypatch.setattr(machine.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert load(GOOD, "model.compile=layers", here=True)


def test_state_in_8_bits_is_of_whole_parameters(load, faults, monkeypatch) -> None:
    name = "training.optimizer=adamw_8bit"
    for engine in ("zero1", "zero2", "zero3", "zero2_offload"):
        found = faults(GOOD, name, f"parallel.deepspeed={engine}")["training.optimizer"]
        assert f"{engine} cuts parameters" in found.message and "deepspeed: none" in found.allowed
    assert load(GOOD, name, "parallel.deepspeed=none", here=True)
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda package: None)
    found = faults(GOOD, name, "parallel.deepspeed=none", here=True)["training.optimizer"]
    assert "finetune[quantized]" in found.allowed


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["training.precision=fp32"], "bf16, not in fp32"),
        (["training.precision=fp16"], "bf16, not in fp16"),
        (["model.dtype=float16"], "float16"),
        (["adapter={}"], "frozen"),
        (["model.quantization=4bit"], "quantized"),
        (["parallel.deepspeed=zero3"], "ZeRO-3 frees"),
        (["parallel.tensor=2", "parallel.deepspeed=zero1"], "sliced"),
        (["parallel.pipeline=2"], "pipeline"),
    ],
)
def test_float8_is_refused_where_it_does_not_work(load, faults, sets: list[str], words: str) -> None:
    assert words in faults(GOOD, "model.float8=tensorwise", *sets)["model.float8"].message
    assert load(GOOD, "model.float8=tensorwise", "parallel.deepspeed=zero2")


def test_float8_needs_a_gpu_and_torchao_on_this_machine(load, faults, monkeypatch) -> None:
    asked = (GOOD, "model.float8=rowwise_with_gw_hp")
    monkeypatch.setattr(machine, "has_cuda", lambda: False)
    assert "8.9 or higher" in faults(*asked, here=True)["model.float8"].message
    monkeypatch.setattr(machine, "has_cuda", lambda: True)
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda package: None)
    assert "finetune[float8]" in faults(*asked, here=True)["model.float8"].allowed
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda package: package)
    assert load(*asked, here=True) and load(*asked, here=False)
