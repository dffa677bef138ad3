"""Batch arithmetic, DeepSpeed files with their "auto" filled in, bytes by ZeRO stage, sizes from configurations."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from finetune.app.recipes import resolve_recipe
from finetune.errors import UserError
from finetune.planning.batch import plan_batch
from finetune.planning.deepspeed import NOTES, resolve_deepspeed_config
from finetune.planning.memory import state_bytes
from finetune.planning.resolve import Machine, resolve
from finetune.planning.shape import cost_model, layer_elements
from finetune.planning.stored import StoredPlan
from finetune.recipe.deepspeed import read_deepspeed_config
from finetune.tasks import CARDS

FILES = sorted((Path(__file__).resolve().parents[3] / "ds_configs").glob("*.json"))
LLAMA_8B = SimpleNamespace(
    hidden_size=4096, num_attention_heads=32, num_key_value_heads=8, intermediate_size=14336, num_hidden_layers=32,
    vocab_size=128256, hidden_act="silu",
)  # fmt: skip


@pytest.mark.parametrize(
    ("batch", "ranks", "asked", "micro", "accumulation"),
    [(32, 2, "auto", 16, 1), (64, 2, "auto", 16, 2), (32, 3, "auto", 11, 1), (32, 1, 4, 4, 8), (4, 8, "auto", 1, 1)],
)
def test_batch_arithmetic(batch, ranks, asked, micro, accumulation):
    plan = plan_batch(batch, ranks, asked, 16)
    assert (plan.micro_batch, plan.accumulation) == (micro, accumulation)
    assert plan.micro_batch * plan.accumulation * ranks >= batch


@pytest.mark.parametrize(
    ("batch", "at_least", "micro", "accumulation"),
    [(32, 8, 4, 8), (256, 8, 16, 16), (6, 8, 2, 3), (1, 8, 1, 1), (20, 8, 3, 7)],
)
def test_a_pipeline_gets_many_micro_batches_of_more_than_one_example(batch, at_least, micro, accumulation):
    plan = plan_batch(batch, 1, "auto", 16, at_least=at_least)
    assert (plan.micro_batch, plan.accumulation) == (micro, accumulation)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_shipped_file_resolves_without_an_auto_left(file, precision):
    assert len(FILES) >= 6
    resolved = resolve_deepspeed_config(
        read_deepspeed_config(file),
        batch=plan_batch(32, 4, "auto", 16),
        precision=precision,
        max_grad_norm=0.5,
        layer_elements=218_103_808,
        hidden_size=4096,
    )
    assert "auto" not in json.dumps(resolved)
    assert resolved["bf16"]["enabled"] == (precision == "bf16")
    assert resolved["gradient_clipping"] == 0.5
    assert resolved["train_batch_size"] == resolved["train_micro_batch_size_per_gpu"] * 2 * 4
    if resolved["zero_optimization"]["stage"] > 0:
        assert resolved["zero_optimization"]["reduce_bucket_size"] == 218_103_808


@pytest.mark.parametrize(("speeds", "ranks", "complaint"), [([1, 0.5], 3, "2 entries for 3 ranks"), ([1, 0.5], 2, "")])
def test_a_speed_for_every_rank(speeds, ranks, complaint):
    recipe = resolve_recipe("quickstart", [f"parallel.rank_speed={speeds}"]).recipe
    card = CARDS[recipe.task]
    known = {"machine": Machine(ranks, "cpu", False), "config": None, "model_class": None}
    if not complaint:
        assert resolve(recipe, card, **known).ranks == ranks
        return
    with pytest.raises(UserError, match=complaint):
        resolve(recipe, card, **known)


def test_bytes_are_those_of_the_zero_paper():
    """Figure 1 of ZeRO: 7.5B parameters, 64 ranks, Adam in half precision: 120, 31.4, 16.6 and 1.9 GB."""
    expected = {0: 120.0, 1: 31.4, 2: 16.6, 3: 1.88}
    for stage, gigabytes in expected.items():
        found = state_bytes(
            7_500_000_000, 7_500_000_000, ranks=64, stage=stage, precision="bf16", optimizer="adamw", engine=True
        )
        assert found.on_device / 1e9 == pytest.approx(gigabytes, rel=0.01)


def test_sizes_of_llama_3_8b():
    assert layer_elements(LLAMA_8B) == 218_103_808  # 13.0 h^2
    assert cost_model(LLAMA_8B).b == pytest.approx(1.75e-5, rel=0.01)
    assert layer_elements(SimpleNamespace(hidden_sizes=[64, 128])) == 0


@pytest.mark.parametrize(
    ("changes", "device", "precision", "dtype"),
    [
        (["training.precision=fp32"], "cuda", "fp32", "float32"),
        (["training.precision=bf16"], "cpu", "bf16", "bfloat16"),
        (["training.precision=bf16", "parallel.deepspeed=none"], "cuda", "bf16", "bfloat16"),
        (["training.precision=bf16", "parallel.deepspeed=none"], "cpu", "bf16", "float32"),
        (["training.precision=fp32", "model.dtype=float16"], "cpu", "fp32", "float16"),
        ([], "cuda", "bf16", "bfloat16"),
        ([], "cpu", "fp32", "float32"),
        (["training.precision=fp16"], "cuda", "fp16", "float16"),
    ],
)
def test_precision_and_the_type_of_weights_agree(changes, device, precision, dtype):
    recipe = resolve_recipe("quickstart", changes).recipe
    plan = resolve(
        recipe, CARDS[recipe.task], machine=Machine(2, device, device == "cuda"), config=None, model_class=None
    )
    assert (plan.precision, plan.machine.weights_dtype, str(plan.weights_dtype)) == (precision, dtype, f"torch.{dtype}")


@pytest.mark.parametrize(
    ("kind", "changes", "packing", "capacity"),
    [
        ("Llama", [], "padding_free", 512),
        ("Llama", ["data.packing=packed", "data.capacity=4096"], "packed", 4096),
        ("Llama", ["model.config.max_position_embeddings=50"], "padding_free", 48),
        ("Mamba", [], "none", 0),
        ("Gemma2", [], "none", 0),
        ("Gemma2", ["model.attention=flash_attention_2"], "padding_free", 512),
    ],
)
def test_packing_is_decided_from_the_class_and_the_configuration(kind, changes, packing, capacity):
    import transformers

    positions = [change for change in changes if "max_position" in change]
    changes = [*(change for change in changes if change not in positions), "options.max_length=512"]
    recipe = resolve_recipe("causal_lm/tiny-llama-alpaca", changes).recipe
    config = getattr(transformers, f"{kind}Config")(max_position_embeddings=50 if positions else 4096)
    known = {"machine": Machine(1, "cpu", False), "model_class": getattr(transformers, f"{kind}ForCausalLM")}
    plan = resolve(recipe, CARDS["causal_lm"], config=config, **known)
    assert (plan.training.packing, plan.training.capacity) == (packing, capacity)
    assert plan.training.balance_window == (None if packing != "none" else CARDS["causal_lm"].batches.balance_window)
    if packing == "none":
        insists = resolve_recipe("causal_lm/tiny-llama-alpaca", [*changes, "data.packing=padding_free"]).recipe
        with pytest.raises(UserError, match=r"cannot be kept inside|caps its attention"):
            resolve(insists, CARDS["causal_lm"], config=config, **known)


@pytest.mark.parametrize(
    ("kind", "changes", "packing", "capacity"),
    [
        ("Bert", [], "padding_free", 16 * 64),
        ("Bert", ["parallel.micro_batch=4"], "padding_free", 4 * 64),
        ("Bert", ["data.capacity=100"], "padding_free", 100),
        ("Bert", ["data.packing=none"], "none", 0),
        ("DebertaV2", [], "none", 0),
    ],
)
def test_classifiers_are_trained_without_padding_where_their_class_is_known(kind, changes, packing, capacity):
    import transformers

    recipe = resolve_recipe("quickstart", changes).recipe
    card = CARDS[recipe.task]
    config = getattr(transformers, f"{kind}Config")()
    known = {
        "machine": Machine(1, "cpu", False),
        "model_class": getattr(transformers, f"{kind}ForSequenceClassification"),
    }
    training = resolve(recipe, card, config=config, **known).training
    assert (training.packing, training.capacity) == (packing, capacity)
    assert training.balance_window == card.batches.balance_window == 16  # the order of examples is the same
    if kind != "Bert":
        insists = resolve_recipe("quickstart", ["data.packing=padding_free"]).recipe
        with pytest.raises(UserError, match="deberta-v2"):
            resolve(insists, card, config=config, **known)


@pytest.mark.parametrize(
    ("changes", "device", "limit"),
    [
        ([], "cuda", 16_384),
        ([], "cpu", 0),
        (["data.capacity=100"], "cuda", 0),
        (["data.packing=none"], "cuda", 0),
    ],
)
def test_only_free_micro_batches_are_measured(changes, device, limit):
    import transformers

    recipe = resolve_recipe("quickstart", changes).recipe
    known = {"config": transformers.BertConfig(), "model_class": transformers.BertForSequenceClassification}
    plan = resolve(recipe, CARDS[recipe.task], machine=Machine(1, device, True), **known)
    assert (plan.machine.capacity_limit, plan.machine.capacity) == (limit, 0)


def test_packs_are_not_measured():
    import transformers

    recipe = resolve_recipe("causal_lm/tiny-llama-alpaca", ["data.packing=packed"]).recipe
    known = {"config": transformers.LlamaConfig(), "model_class": transformers.LlamaForCausalLM}
    plan = resolve(recipe, CARDS["causal_lm"], machine=Machine(1, "cuda", True), **known)
    assert (plan.training.packing, plan.machine.capacity_limit) == ("packed", 0)


@pytest.mark.parametrize(
    ("recipe", "changes", "device", "masters"),
    [
        ("quickstart", [], "cuda", True),
        ("quickstart", [], "cpu", False),
        ("quickstart", ["model.dtype=bfloat16"], "cuda", False),
        ("quickstart", ["training.precision=fp32"], "cuda", False),
        ("quickstart", ["parallel.master_weights=false"], "cuda", False),
        ("quickstart", ["parallel.deepspeed=zero1"], "cuda", False),
        ("image_classification/resnet-cifar10", [], "cuda", False),
    ],
)
def test_a_gpu_alone_keeps_masters_of_language_models(recipe, changes, device, masters):
    found = resolve_recipe(recipe, ["training.precision=bf16", "parallel.deepspeed=none", *changes]).recipe
    known = {"machine": Machine(1, device, True), "config": None, "model_class": None}
    machine = resolve(found, CARDS[found.task], **known).machine
    assert machine.master_weights == masters
    if not changes:
        assert machine.weights_dtype == ("bfloat16" if masters else "float32")


def test_the_plan_explains_its_two_accumulation_steps():
    recipe = resolve_recipe("quickstart", []).recipe
    known = {"machine": Machine(2, "cpu", False), "config": None, "model_class": None}
    machine = resolve(recipe, CARDS[recipe.task], **known).to_dict()["machine"]
    assert machine["deepspeed"]["gradient_accumulation_steps"] == 2
    assert set(machine["deepspeed_notes"]) == set(NOTES) <= set(machine["deepspeed"])
    alone = resolve_recipe("quickstart", ["parallel.deepspeed=none"]).recipe
    assert "deepspeed_notes" not in resolve(alone, CARDS[recipe.task], **known).to_dict()["machine"]


@pytest.mark.parametrize(
    ("asked", "device", "liger", "expected", "told"),
    [
        ("auto", "cuda", {"llama"}, "liger", ""),
        ("liger", "cuda", {"llama"}, "liger", ""),
        ("none", "cuda", {"llama"}, "none", ""),
        ("auto", "cuda", None, "none", "not installed"),
        ("auto", "cuda", {"qwen3"}, "none", "knows no llama models"),
        ("auto", "cpu", None, "none", ""),
        ("liger", "cpu", None, "none", ""),  # of a run that is evaluated elsewhere
        ("liger", "cuda", None, r"finetune\[gpu\]", ""),
        ("liger", "cuda", {"qwen3"}, "auto or none", ""),
    ],
)
def test_fused_layers_are_resolved_once_and_an_automatic_choice_is_told(asked, device, liger, expected, told):
    import transformers

    recipe = resolve_recipe("causal_lm/tiny-llama-alpaca", [f"model.kernels={asked}"]).recipe
    known = {"config": transformers.LlamaConfig(), "model_class": transformers.LlamaForCausalLM}
    machine = Machine(1, device, False, None if liger is None else frozenset(liger))
    if expected not in ("liger", "none"):
        with pytest.raises(UserError) as caught:
            resolve(recipe, CARDS["causal_lm"], machine=machine, **known)
        assert re.search(expected, caught.value.remedy)
        return
    plan = resolve(recipe, CARDS["causal_lm"], machine=machine, **known)
    assert plan.machine.kernels == plan.to_dict()["machine"]["kernels"] == expected
    assert len(plan.notes) == bool(told) and told in "".join(plan.notes)


def test_compiled_layers_take_the_place_of_fused_ones():
    import transformers

    recipe = resolve_recipe("causal_lm/tiny-llama-alpaca", ["model.compile=layers"]).recipe
    known = {"config": transformers.LlamaConfig(), "model_class": transformers.LlamaForCausalLM}
    machine = Machine(1, "cuda", False, frozenset({"llama"}))
    plan = resolve(recipe, CARDS["causal_lm"], machine=machine, **known)
    assert (plan.machine.compile, plan.machine.kernels) == ("layers", "none")
    assert "model.compile fuses the layers" in "".join(plan.notes)


@pytest.mark.parametrize("device", ["cuda", "cpu"])  # cpu: of a run that is evaluated there
def test_float8_is_part_of_what_is_learned_and_pays_when_compiled(device):
    known = {"config": None, "model_class": None, "machine": Machine(1, device, True)}
    plans = {}
    for compiled in ("none", "layers"):
        sets = ["model.float8=tensorwise", "training.precision=bf16", f"model.compile={compiled}"]
        plans[compiled] = resolve(resolve_recipe("quickstart", sets).recipe, CARDS["text_classification"], **known)
        assert plans[compiled].to_dict()["training"]["float8"] == "tensorwise"
    assert "slower than bf16" in "".join(plans["none"].notes) and "float8" not in "".join(plans["layers"].notes)
    plain = resolve(resolve_recipe("quickstart", []).recipe, CARDS["text_classification"], **known)
    assert plain.training.float8 == "none"
    stored = StoredPlan(plans["none"].to_dict()["training"], {})
    assert stored.over(plain.training).float8 == "tensorwise"


def test_tf32_is_chosen_explicitly_for_a_gpu_that_has_it_and_kept_elsewhere():
    recipe = resolve_recipe("quickstart", ["training.precision=tf32"]).recipe
    known = {"config": None, "model_class": None}
    ampere = Machine(1, "cuda", True, tf32_supported=True)
    plan = resolve(recipe, CARDS[recipe.task], machine=ampere, **known)
    assert (plan.precision, plan.machine.weights_dtype) == ("tf32", "float32")
    assert not plan.deepspeed["bf16"]["enabled"] and not plan.deepspeed["fp16"]["enabled"]
    for other in (Machine(1, "cuda", True), Machine(1, "cpu", False)):
        with pytest.raises(UserError, match=r"8\.0"):
            resolve(recipe, CARDS[recipe.task], machine=other, **known)
        kept = resolve(recipe, CARDS[recipe.task], machine=other, kept=plan.training, **known)
        assert kept.precision == "tf32" and kept.machine.weights_dtype == "float32"
    automatic = resolve_recipe("quickstart", []).recipe
    assert resolve(automatic, CARDS[recipe.task], machine=ampere, **known).precision == "bf16"


@pytest.mark.parametrize(
    ("changes", "masters", "dtype"),
    [
        (["parallel.deepspeed=none", "training.precision=bf16"], True, "bfloat16"),
        (["parallel.deepspeed=none", "training.precision=fp32"], False, "float32"),
        (["parallel.deepspeed=zero1", "training.precision=bf16"], False, "bfloat16"),  # DeepSpeed has its own
    ],
)
def test_masters_are_kept_of_bf16_weights_that_deepspeed_does_not_keep(changes, masters, dtype):
    known = {"machine": Machine(1, "cpu", False), "config": None, "model_class": None}
    for asked in (True, False):
        recipe = resolve_recipe("quickstart", changes).recipe
        recipe = recipe.model_copy(update={"parallel": recipe.parallel.model_copy(update={"master_weights": asked})})
        machine = resolve(recipe, CARDS[recipe.task], **known).machine
        assert machine.master_weights == (masters and asked)
        assert machine.weights_dtype == (dtype if asked or not masters else "float32")
