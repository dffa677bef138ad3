"""Proves that a recipe loads with every value explicit and its origin known, and that all faults come at once."""

from __future__ import annotations

import tempfile
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.errors import EXIT_USER, RecipeFaults
from finetune.recipe.load import dump_yaml, load_recipe
from finetune.recipe.recipe import recipe_type
from finetune.recipe.schema import all_keys, schema_of
from finetune.recipe.yaml_dialect import one_line
from finetune.tracking.run import recipe_text

from .conftest import CARDS, GOOD

BAD = """\
    name: a name
    task: sortin
    modle:
      source: x
    model:
      source: hf_abcdefghijklmnopqrstuv
      init: pretraind
    data:
      train: someone/data
      validation_fraction: 1.5
      columns: {txt: a}
    epochs: 3
    training:
      learning_rate: fast
      steps: true
      betas: [0.9]
      optimizer: adamww
    parallel:
      deepspeed: zero2
      processes: 0
    tracking:
      lr: 3
    evaluation:
      metrics: [acuracy]
      every: 2.5
    options:
      max_lenth: 3
"""


def test_a_small_recipe_becomes_a_whole_one(load) -> None:
    loaded = load()
    recipe = loaded.recipe
    assert recipe.training.epochs == 3
    assert recipe.training.steps is None
    assert recipe.evaluation.metrics == ["accuracy", "f1_macro"]
    assert recipe.evaluation.best == "accuracy"
    assert recipe.tracking.group == "good"
    assert recipe.options.max_length == 256
    assert loaded.warnings == ()


def test_every_value_says_where_it_came_from(load) -> None:
    origins = load(GOOD, "training.learning_rate=3e-5", "data.train.limit=7").origins
    assert origins["name"] == "r.yaml:1"
    assert origins["model.source"] == "r.yaml:4"
    assert origins["data.train.0.source"] == "r.yaml:6"
    assert origins["data.train.0.limit"] == "--set data.train.limit"
    assert origins["training.learning_rate"] == "--set training.learning_rate"
    assert origins["training.epochs"] == "default"
    assert origins["options.max_length"] == "default"
    assert origins["evaluation.best"].startswith("derived")
    assert len(origins) > 50


def test_a_mapping_as_source_keeps_its_lines(load) -> None:
    text = GOOD.replace("train: someone/some-data", "train:\n        source: someone/some-data\n        limit: 5")
    origins = load(text).origins
    assert origins["data.train.0.source"] == "r.yaml:7"
    assert origins["data.train.0.limit"] == "r.yaml:8"


def test_the_resolved_recipe_loads_again_and_is_equal(load, tmp_path) -> None:
    first = load(
        GOOD, "tracking.wandb=off", "model.revision='1e5'", "tracking.tags=[a, 'null', '007']", "adapter={rank: 4}"
    )
    path = tmp_path / "resolved.yaml"
    path.write_text(dump_yaml(first.recipe), encoding="utf-8")
    again = load_recipe(path, (), CARDS)
    assert again.recipe == first.recipe
    assert first.recipe.model.revision == "1e5"
    assert first.recipe.tracking.tags == ["a", "null", "007"]
    assert "default" not in set(again.origins.values())


def test_the_shown_recipe_holds_no_secret_and_the_stored_one_is_exact(load, tmp_path) -> None:
    secret = "hf_" + "a" * 30
    loaded = load(GOOD, f"model.config={{api_token: 'env:MY_TOKEN', note: {secret}}}")
    assert secret not in loaded.dump_yaml() and "env:MY_TOKEN" in loaded.dump_yaml()
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text(loaded.recipe), encoding="utf-8")
    assert load_recipe(path, (), CARDS).recipe == loaded.recipe


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("model.config={api_token: hunter2}", "model.config.api_token"),
        ("model.config={deep: [{aws_secret_access_key: hunter2}]}", "model.config.deep.0.aws_secret_access_key"),
        ("model.config={token: 'env:not a name hunter2'}", "model.config.token"),
        ("data.train=s3://me:hunter2@host/x.csv", "data.train.source"),
        ("data.train=https://hunter2@host/x.csv", "data.train.source"),
        ("data.train='https://host/x.csv?version=3&token=hunter2'", "data.train.source"),
        ("model.source='https://host/m?X-Amz-Date=1&X-Amz-Signature=hunter2'", "model.source"),
    ],
)
def test_a_literal_secret_is_refused_and_not_shown(faults, override, key) -> None:
    found = faults(GOOD, override)
    assert "must not be written into a recipe" in found[key].message, found
    assert "hunter2" not in str([str(fault) for fault in found.values()])


@pytest.mark.parametrize(
    "override",
    [
        "tracking.tags=['translate cs-sk-translation-corpus: ', 'risk-assessment-of-2024-report']",
        "tracking.tags=[/data/sk-parallel-corpus-v1/train.csv]",
        "model.config={pad_token: '<pad>', eos_token: '</s>', image_token: '<image>', tokens: 'a b'}",
        "data.train=someone/hf_data",
        "model.config={note: 'mail me@example.org; see https://example.org/a?page=2'}",
    ],
)
def test_ordinary_values_are_stored_exactly_and_shown(load, tmp_path, override) -> None:
    loaded = load(GOOD, override)
    assert "***" not in loaded.dump_yaml() and "***" not in recipe_text(loaded.recipe)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text(loaded.recipe), encoding="utf-8")
    assert load_recipe(path, (), CARDS).recipe == loaded.recipe


def test_all_faults_come_at_once_in_the_order_of_the_file(faults) -> None:
    found = faults(BAD)
    assert set(found) == {
        "name",
        "task",
        "modle",
        "model.init",
        "data.validation_fraction",
        "data.columns.txt",
        "epochs",
        "training.learning_rate",
        "training.steps",
        "training.betas",
        "training.optimizer",
        "parallel.processes",
        "tracking.lr",
        "evaluation.metrics.0",
        "evaluation.every",
        "options.max_lenth",
    }
    lines = [int(fault.where.rpartition(":")[2]) for fault in found.values()]
    assert lines == sorted(lines)
    assert all(fault.where.startswith("r.yaml:") for fault in found.values())


@pytest.mark.parametrize(
    ("key", "field", "words"),
    [
        ("task", "nearest", "sorting"),
        ("modle", "nearest", "model"),
        ("model.init", "nearest", "pretrained"),
        ("data.validation_fraction", "allowed", "a number of at least 0 and below 1"),
        ("data.columns.txt", "nearest", "text"),
        ("epochs", "message", "belongs in training"),
        ("epochs", "nearest", "training.epochs"),
        ("training.learning_rate", "allowed", "a number above 0"),
        ("training.learning_rate", "value", "fast"),
        ("training.steps", "message", "true or false"),
        ("training.betas", "allowed", "2 values"),
        ("training.optimizer", "allowed", "adamw, adam, radam, lion, sgd"),
        ("training.optimizer", "nearest", "adamw"),
        ("parallel.processes", "allowed", "a whole number of at least 1, or auto"),
        ("tracking.lr", "nearest", "training.learning_rate"),
        ("evaluation.metrics.0", "nearest", "accuracy"),
        ("evaluation.every", "allowed", "a whole number of at least 1, or epoch"),
        ("options.max_lenth", "nearest", "options.max_length"),
    ],
)
def test_a_fault_says_what_was_meant_and_what_is_allowed(faults, key: str, field: str, words: str) -> None:
    assert words in getattr(faults(BAD)[key], field)


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("load_in_4bit=true", "model.quantization"),
        ("training.gradient_accumulation_steps=4", "training.global_batch"),
        ("val_set_size=0.1", "data.validation_fraction"),
        ("adapter={r: 8}", "adapter.rank"),
        ("output_dir=out", "the option --run-dir"),
        ("training.optimizer=adamw_torch", "adamw"),
        ("training.optimizer=paged_adamw_8bit", "adamw_8bit"),
        ("training.schedule=cosine_with_restarts", "cosine"),
    ],
)
def test_names_of_other_tools_lead_to_the_name_here(faults, override: str, meant: str) -> None:
    (fault,) = faults(GOOD, override).values()
    assert fault.nearest == meant
    assert "takes name, task" not in fault.allowed  # all keys of a section, beside the one that is meant


def test_faults_end_with_exit_code_2_and_show_no_secret(load) -> None:
    with pytest.raises(RecipeFaults) as caught:
        load(BAD + "    api_key: very-secret\n")
    assert caught.value.exit_code == EXIT_USER
    assert "very-secret" not in str(caught.value)
    assert "api_key" in str(caught.value)


def test_missing_keys_are_reported(faults) -> None:
    found = faults("seed: 1\n")
    assert set(found) == {"name", "task", "model", "data"}
    assert all("missing" in fault.message for fault in found.values())
    assert "sorting, writing" in found["task"].allowed


def test_options_belong_to_their_task(faults) -> None:
    found = faults(GOOD + "    options: {template: x}\n")
    assert found["options.template"].message == "unknown key"
    assert "max_length" in found["options.template"].allowed


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("training.learning_rate=3e-5", 3e-5),
        ("training.steps=10", 10),
        ("model.gradient_checkpointing=true", True),
        ("tracking.tags=[a, b]", ["a", "b"]),
        ("parallel.deepspeed=none", "none"),
        ("model.config.num_layers=2", 2),
        ("data.columns={text: body}", {"text": "body"}),
    ],
)
def test_set_overrides_any_key(load, override: str, value: object) -> None:
    found = load(GOOD, override).recipe.model_dump()
    for key in override.partition("=")[0].split("."):
        found = found[key]
    assert found == value


def test_set_reaches_into_lists(load) -> None:
    text = GOOD.replace("train: someone/some-data", "train: [a/b, {source: c/d, limit: 3}]")
    recipe = load(text, "data.train.0.limit=5", "data.train.1.limit=null").recipe
    assert [(source.source, source.limit) for source in recipe.data.train] == [("a/b", 5), ("c/d", None)]
    assert [source.source for source in load(text, "data.train=e/f").recipe.data.train] == ["e/f"]


def test_the_last_set_wins(load) -> None:
    assert load(GOOD, "seed=1", "seed=2").recipe.seed == 2


@pytest.mark.parametrize(
    ("override", "key", "words"),
    [
        ("training.epoch=3", "training.epoch", "training.epochs"),
        ("training.epochs=many", "training.epochs", "wrong type: text"),
        ("training.epochs", "training.epochs", "KEY=VALUE"),
        ("seed.deep=1", "seed", "wrong type: a mapping"),
        ("name.deep=1", "name.deep", "not a section"),
        ("data.train.7.limit=1", "data.train.7.limit", "has 1 items"),
        ("tracking.tags=[a", "tracking.tags", "not a YAML value"),
        ("epochs=3", "epochs", "belongs in training"),
    ],
)
def test_faults_of_set_name_the_option(faults, override: str, key: str, words: str) -> None:
    fault = faults(GOOD, override)[key]
    assert fault.where.startswith("--set ")
    assert words in f"{fault.message} {fault.nearest}"


def test_set_cannot_choose_between_sources(faults) -> None:
    text = GOOD.replace("train: someone/some-data", "train: [a/b, c/d]")
    assert "name one item" in faults(text, "data.train.limit=5")["data.train.limit"].message


@pytest.mark.parametrize("line", ["training:", "options:", "tracking: {}", "adapter: null"])
def test_an_empty_section_means_its_defaults(load, line: str) -> None:
    assert load(GOOD + f"    {line}\n").recipe == load().recipe


def test_an_empty_value_is_a_fault(faults) -> None:
    assert faults(GOOD + "    training: {learning_rate: }\n")["training.learning_rate"].message == "has no value"


def test_numbers_where_text_is_wanted_ask_for_quotes(faults) -> None:
    fault = faults(GOOD.replace("model:", "model:\n      revision: 1234567"))["model.revision"]
    assert "quotes" in fault.nearest


def test_a_number_cannot_be_nan(faults) -> None:
    assert "training.learning_rate" in faults(GOOD, "training.learning_rate=.nan")
    assert "training.learning_rate" in faults(GOOD, "training.learning_rate=.inf")
    for odd in ("1E400", ".nan", "[1, -.inf]"):  # stored as JSON they would be null
        assert "not finite" in faults(GOOD, f"model.config={{rope_theta: {odd}}}")["model.config"].message


def test_a_broken_source_does_not_make_the_list_empty(faults) -> None:
    assert set(faults(GOOD, "data.train.limi=3")) == {"data.train.limi"}


KEYS = [".".join(key) for key in all_keys(schema_of(recipe_type(CARDS["sorting"])))]
ODD = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-2, 70),
        st.floats(),
        st.sampled_from(["", "a", "auto", "none", "./x", "*"]),
    ),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "source", "text", "0"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(KEYS), ODD), min_size=1, max_size=3))
def test_whatever_is_written_it_loads_or_is_reported(changes: list[tuple[str, object]]) -> None:
    """No value anywhere makes the loader itself fail; and what loads survives the way through its resolved YAML."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.yaml"
        path.write_text(dedent(GOOD))
        sets = [f"{key}={one_line(value)}" for key, value in changes]
        try:
            recipe = load_recipe(path, sets, CARDS).recipe
        except RecipeFaults as error:
            assert str(error)
            assert all(fault.message and fault.where for fault in error.faults)
            return
        path.write_text(dump_yaml(recipe))
        assert load_recipe(path, (), CARDS).recipe == recipe
