"""Proves that the name of prepared data changes with everything that shapes it, and with nothing else."""

import ast
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from finetune.app.preparation.entry import MANIFEST, find_prepared
from finetune.app.preparation.request import FORMAT, KEPT, KIND, SECTIONS, TRAINING_KEYS, Request
from finetune.data.prepare.cache import publish
from finetune.recipe.recipe import recipe_type
from finetune.tasks import CARDS
from tests.e2e import tiny
from tests.faults import flip_bit

TASKS = Path(__file__).resolve().parents[2] / "finetune" / "tasks"


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny.write_data(tmp_path)

    def request(**changes):
        values = tiny.recipe(data={"train": str(tmp_path / "train.csv"), **changes.pop("data", {})}, **changes)
        return Request.of(recipe_type(CARDS["text_classification"])(**values))

    return request


def test_what_shapes_the_data_changes_its_name(make, tmp_path):
    names = {make().names().new}
    changed = [
        make(seed=3),
        make(options={"max_length": 9}),
        make(data={"limit": 7}),
        make(data={"validation_fraction": 0.5}),
        make(training={"label_smoothing": 0.1}),
        make(model={**tiny.recipe()["model"], "new_tokens": ["<x>"]}),
    ]
    names |= {request.names().new for request in changed}
    os.utime(tmp_path / "train.csv", ns=(1, 1))
    names.add(make().names().new)
    with (tmp_path / "train.csv").open("a") as file:
        file.write("a late row,good\n")
    names.add(make().names().new)
    assert len(names) == 9


def test_the_file_of_tools_is_part_of_the_name(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    tools, model = tmp_path / "tools.json", {"source": "llama", "init": "config"}
    values = {"name": "t", "task": "causal_lm", "model": model, "data": {"train": str(tmp_path / "train.jsonl")}}
    request = Request.of(recipe_type(CARDS["causal_lm"])(**values, options={"tools": str(tools)}))
    names = {request.names().new}
    for content in ("[]", '[{"type": "function", "function": {"name": "add"}}]'):
        tools.write_text(content)
        names.add(request.names().new)
    assert len(names) == 3


def test_an_entry_whose_parts_are_gone_is_prepared_again(make):
    def write(folder):
        manifest = {"format": FORMAT, "kept": {}, "entries": [str(part)]}
        (folder / MANIFEST).write_text(json.dumps(manifest))

    names = make().names()
    part = publish("examples", "part", lambda folder: (folder / "x").write_text("x"))
    entry = publish(KIND, names.new, write)
    assert find_prepared(names) == entry
    shutil.rmtree(part)
    assert find_prepared(names) is None
    assert not entry.exists(), "or nobody would make it again"


def test_what_does_not_shape_the_data_keeps_its_name(make):
    name = make().names().new
    same = [
        make(name="other"),
        make(training={"learning_rate": 1.0, "global_batch": 2}),
        make(parallel={"deepspeed": "zero3", "processes": 7}),
        make(data={"workers": 3}),
        make(evaluation={"every": 1}),
    ]
    assert {request.names().new for request in same} == {name}


def test_a_run_that_keeps_its_plan_and_artifacts_has_a_name_of_its_own(make, tmp_path):
    request, run = make(), tmp_path / "run"
    assert Request(request.values, run).names() == request.names(), "a new run has decided nothing"
    run.mkdir()
    (run / "plan.json").write_text(json.dumps({"training": {"precision": "fp32", "packing": "none", "capacity": 0}}))
    names = Request(request.values, run).names()
    assert names.new == request.names().new and names.kept == {"packing": "none", "capacity": 0}
    assert names.resumed != names.new == Request(request.values, None).names().published
    assert names.published == names.resumed


def attributes_of(tree, name):
    """Chains that begin with a name: plan.recipe.training.label_smoothing -> ("recipe", "training", "label_smoothing")."""
    for node in ast.walk(tree):
        parts, inner = [], node
        while isinstance(inner, ast.Attribute):
            parts.append(inner.attr)
            inner = inner.value
        if parts and isinstance(inner, ast.Name) and inner.id == name:
            yield tuple(reversed(parts))


def test_tasks_read_nothing_else_of_a_recipe_while_they_prepare():
    seen, faults = 0, []
    for path in TASKS.glob("*/task.py"):
        functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
        for function in functions:
            if function.name not in ("prepare", "dataset", "_check", "_config_settings", "_size_settings"):
                continue
            chains = {chain[1:] for chain in attributes_of(function, "plan") if chain[0] == "recipe" and len(chain) > 1}
            chains |= set(attributes_of(function, "recipe"))
            seen += len(chains)
            for chain in chains:
                known = chain[0] in SECTIONS or (chain[0] == "training" and (chain[1:2] or ("",))[0] in TRAINING_KEYS)
                if not known and chain != ("training",):
                    faults.append(f"{path.parent.name}.{function.name}: recipe.{'.'.join(chain)}")
            for chain in attributes_of(function, "plan"):
                if chain[0] not in ("recipe", "training") or (
                    chain[0] == "training" and chain[1:2] and chain[1] not in (*KEPT, "batch_norm")
                ):
                    faults.append(f"{path.parent.name}.{function.name}: plan.{'.'.join(chain)}")
    assert seen > 20 and not faults, faults


def test_arrays_of_examples_are_mapped_and_come_back_equal(tmp_path):
    from finetune.app.workers.prepared_datasets import load_datasets, write_datasets
    from finetune.data.table import Examples
    from finetune.tasks.text.selection import SelectedExamples

    class Numbers:
        ids = costs = np.arange(1_000)

        def __len__(self):
            return 1_000

    selected: Examples = SelectedExamples(Numbers(), np.arange(0, 1_000, 3))
    selected.examples = None
    write_datasets(tmp_path, {"train": selected, "validation": selected})
    loaded = load_datasets(tmp_path)
    assert np.array_equal(loaded["train"].ids, selected.ids) and np.array_equal(
        loaded["validation"].kept, selected.kept
    )
    assert not loaded["train"].ids.flags.writeable and not loaded["train"].costs.flags.writeable
    assert len((tmp_path / "datasets.pickle").read_bytes()) < 1_500


def test_an_entry_with_a_damaged_part_is_reported_and_prepared_again(make, capsys):
    def write(folder):
        (folder / "datasets.pickle").write_bytes(b"pickled" * 100)
        manifest = {"format": FORMAT, "kept": {}, "entries": [str(part)], "data": {}}
        (folder / MANIFEST).write_text(json.dumps(manifest))

    names = make().names()
    attacked = 0
    for damaged, name in (("part", "x"), ("entry", "datasets.pickle"), ("entry", MANIFEST)):
        part = publish(
            "examples", "part", lambda folder: (folder / "x").write_text("x" * 500), about="train: train.csv"
        )
        entry = publish(KIND, names.new, write, about="tiny")
        assert find_prepared(names) == entry and not capsys.readouterr().out
        flip_bit((part if damaged == "part" else entry) / name)
        assert find_prepared(names) is None
        (line,) = capsys.readouterr().out.splitlines()
        assert (
            line.startswith("note: ") and f"is damaged: {name}: other content" in line and line.endswith("made again")
        )
        assert not entry.exists() and (damaged == "entry" or not part.exists())
        attacked += 1
    assert attacked == 3
