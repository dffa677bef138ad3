"""Which models and engines can share the matrices of layers, and what is said of those that cannot."""

import pytest

from finetune.errors import UserError
from finetune.planning.batch import plan_batch
from finetune.planning.deepspeed import resolve_deepspeed_config
from finetune.planning.resolve import Machine, resolve
from finetune.planning.tensor import check_engine, check_model
from finetune.tasks import CARDS
from tests.unit.planning.test_planning import FILES


def config(kind, **values):
    from transformers import AutoConfig

    return AutoConfig.for_model(kind, **values)


@pytest.mark.parametrize(
    ("kind", "ranks"),
    [("llama", 2), ("llama", 32), ("qwen2", 4), ("qwen3", 8), ("mistral", 8), ("gemma", 2), ("gpt_neox", 4)],
)
def test_models_that_can_be_shared(kind, ranks):
    check_model(config(kind), ranks)


@pytest.mark.parametrize(
    ("kind", "values", "ranks", "said"),
    [
        ("llama", {}, 3, ["num_attention_heads 32", "num_key_value_heads 32", "11008", "not a multiple of 3"]),
        ("llama", {"num_key_value_heads": 2}, 4, ["num_key_value_heads 2 of the model is not a multiple", "shared by 2 ranks"]),
        ("llama", {"intermediate_size": 11}, 2, ["intermediate_size 11", "No number of ranks can"]),
        ("gpt2", {}, 2, ["gpt2", "is missing", "zero3"]),
        ("phi3", {}, 2, ["phi3", "rowwise_split_input"]),
        ("mixtral", {}, 2, ["mixtral", "cannot be sliced"]),
    ],
)  # fmt: skip
def test_models_that_cannot_are_told_why(kind, values, ranks, said):
    with pytest.raises(UserError) as error:
        check_model(config(kind, **values), ranks, where="r.yaml:7")
    told = str(error.value)
    assert all(words in told for words in [*said, "r.yaml:7"]), told
    check_model(config(kind, **values), 1)


@pytest.mark.parametrize("stage", [None, 0, 2, 3])
def test_engines_that_cannot_are_told(stage):
    with pytest.raises(UserError, match="tensor 2 cannot be trained with"):
        check_engine(2, stage)
    check_engine(1, stage)
    check_engine(2, 1)


def test_a_file_of_ones_own_is_read_for_its_stage(load):
    own = next(file for file in FILES if file.stem == "zero2")
    known = {"machine": Machine(2, "cpu", False), "config": config("llama"), "model_class": None}
    with pytest.raises(UserError, match="with ZeRO-2"):
        resolve(load("parallel.tensor=2", deepspeed=str(own)), CARDS["causal_lm"], **known)
    plan = resolve(load("parallel.tensor=2"), CARDS["causal_lm"], **known)
    assert plan.engine_name == "DeepSpeed ZeRO-1, tensor parallel 2"
    assert (plan.replica_size, plan.batch.replicas, plan.batch.micro_batch) == (2, 1, 8)


@pytest.fixture
def load():
    from finetune.recipe.recipe import recipe_type

    def make(change, deepspeed="zero1"):
        key, value = change.split("=")
        section, name = key.split(".")
        card = CARDS["causal_lm"]
        values = {"name": "x", "task": "causal_lm", "model": {"source": "a/b"}, "data": {"train": "a/b"}}
        values["training"] = {"global_batch": 8}
        values[section] = {name: int(value), "deepspeed": deepspeed}
        return recipe_type(card).model_validate(values)

    return make


def test_deepspeed_is_told_and_its_own_check_holds():
    written = {"zero_optimization": {"stage": 1}}
    resolved = resolve_deepspeed_config(
        written, batch=plan_batch(32, 2, 4, 16), precision="fp32", max_grad_norm=1.0, tensor=2
    )
    assert resolved["tensor_parallel"] == {"autotp_size": 2, "vocab_parallel_lm_head": False}
    assert resolved["train_batch_size"] == 4 * 2 * 4  # DeepSpeed asserts micro-batch x accumulation x all ranks
