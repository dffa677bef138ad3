"""Attacks a run by changing the data under it: its verbs take labels, tokenizer and splits from the run, or refuse.

A training that was stopped is resumed, evaluated and exported after labels were flipped, rows appended, a class renamed, and
after an edit that keeps size and time. Nothing may be trained on, or measured with, other rows than those of the run.
"""

import csv
import json
import os
import shutil

import pytest

from tests.e2e import tiny
from tests.e2e.conftest import Ended, Workers
from tests.e2e.inside import TERM
from tests.ranks import RankError

SETS = ("parallel.deepspeed=none", "model.tokenizer=train:400")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of its own, whose data may be changed: validation rows are held out of train.csv."""
    folder = tmp_path_factory.mktemp("changed")
    tiny.write_data(folder)
    tiny.write_recipe(folder, data={"train": "train.csv", "validation_fraction": 0.25})
    shutil.copy(folder / "train.csv", folder / "kept.csv")
    return folder


@pytest.fixture(scope="module")
def stopped(place, pool):
    """A run that was stopped at step 7 of 50."""
    with pytest.raises(Ended, match="stopped after step 7"):
        Workers(pool, place).train(1, "stopped", *SETS, signals={7: (0, TERM)})
    return place / "stopped"


@pytest.fixture
def run(stopped, place, tmp_path):
    """A copy of it; the data is as it was, before and after."""
    shutil.copytree(stopped, tmp_path / "run", ignore=shutil.ignore_patterns("failure-*"))
    yield tmp_path / "run"
    (place / "train.csv").unlink()
    shutil.copy(place / "kept.csv", place / "train.csv")


def edit(place, change):
    rows = list(csv.reader((place / "train.csv").open()))
    rows[1:] = change(rows[1:])
    with (place / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def flip_labels(place):
    swapped = {"good": "bad", "bad": "good"}
    edit(place, lambda rows: [[text, swapped[label] if i % 9 == 0 else label] for i, (text, label) in enumerate(rows)])


def append_rows(place):
    edit(place, lambda rows: [*rows, *([f"a late row {i}", "good"] for i in range(12))])


def rename_class(place):
    edit(place, lambda rows: [[text, "awful" if label == "bad" else label] for text, label in rows])


def keep_size_and_time(place):
    path = place / "train.csv"
    stat, content = path.stat(), path.read_bytes()
    path.write_bytes(content.replace(b"the", b"eht", 1))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size and path.stat().st_mtime_ns == stat.st_mtime_ns


ATTACKS = {
    flip_labels: "train.csv has other content, or the images that it names have (48 rows as before)",
    append_rows: "train.csv had 48 rows, and now has 60",
    rename_class: "train.csv has other content",
    keep_size_and_time: "train.csv has other content",
}


def state_of(run):
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and "logs" not in path.parts and "notes" not in path.parts
    }


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_a_training_is_not_resumed_on_other_data(attack, run, place, pool):
    before = state_of(run)
    attack(place)
    with pytest.raises(RankError, match="not what the run was trained on") as refused:
        Workers(pool, place).train(1, run, *SETS)
    assert ATTACKS[attack] in str(refused.value) and "--data-changed" in str(refused.value)
    assert state_of(run) == before, "nothing is written"
    shutil.copy(place / "kept.csv", place / "train.csv")
    Workers(pool, place).train(1, run, *SETS, "training.epochs=10")
    assert json.loads((run / "run.json").read_text())["status"] == "done", "moved back, it is the same data"


def test_a_training_is_not_resumed_with_another_plan_or_recipe_in_its_folder(run, place, pool):
    plan, recipe = run / "plan.json", run / "recipe.yaml"
    kept = plan.read_text(), recipe.read_text()
    assert '"precision": "fp32"' in kept[0] and "weight_decay: 0.0" in kept[1]
    plan.write_text(kept[0].replace('"precision": "fp32"', '"precision": "bf16"', 1))
    with pytest.raises(RankError, match="the plan of the run is not the one that it was trained with"):
        Workers(pool, place).train(1, run, *SETS)
    plan.write_text(kept[0])
    recipe.write_text(kept[1].replace("weight_decay: 0.0", "weight_decay: 0.5", 1))
    with pytest.raises(Ended, match="the checkpoint was trained with another recipe") as refused:
        Workers(pool, place).train(1, run, *SETS, "training.weight_decay=0.5")
    assert "training.weight_decay: 0.0" in str(refused.value)
    recipe.write_text(kept[1])
    Workers(pool, place).train(1, run, *SETS)


def test_the_same_command_refuses_before_any_rank_starts_and_goes_on_if_told_to(run, place, finetune):
    append_rows(place)
    command = ["train", "tiny.yaml", "--run-dir", str(run), "--set", "parallel.processes=1"]
    command += [word for value in SETS for word in ("--set", value)]
    refused = finetune(*command, folder=place)
    assert refused.code == 2 and "starting 1 rank" not in refused.output, refused.output
    assert "train.csv had 48 rows, and now has 60" in refused.output and "Traceback" not in refused.output
    told = finetune(*command, "--data-changed", folder=place)
    assert told.code == 0, told.output
    assert "THE DATA HAS CHANGED since step-00000007: train" in told.output
    kept = json.loads((run / "run.json").read_text())
    assert kept["data_changes"][0]["step"] == 7 and kept["status"] == "done"
    again = json.loads((run / "artifacts" / "artifacts.json").read_text())
    assert again == json.loads((place / "stopped" / "artifacts" / "artifacts.json").read_text())


def test_verbs_of_a_run_take_labels_tokenizer_and_splits_from_it(run, place, finetune):
    whole = finetune("evaluate", str(run), "--checkpoint", "latest", "--processes", "1", folder=place)
    assert whole.code == 0, whole.output
    tokenizer = (run / "artifacts" / "processor" / "tokenizer.json").read_bytes()
    append_rows(place)
    rename_class(place)
    for split in ("validation", "train"):
        refused = finetune("evaluate", str(run), "--checkpoint", "latest", "--split", split, folder=place)
        assert refused.code == 2, refused.output
        assert f"the rows of {split} are not those that the run had" in refused.output
        assert "train.csv had 48 rows, and now has 60" in refused.output and "--data FILE" in refused.output
    assert len(list((run / "evaluations").iterdir())) == 1, "nothing is left of what was refused"
    exported = finetune("export", str(run), "--output", str(run / "out"), "--checkpoint", "latest", folder=place)
    assert exported.code == 0, exported.output
    assert json.loads((run / "out" / "config.json").read_text())["id2label"] == {"0": "bad", "1": "good"}
    assert (run / "out" / "tokenizer.json").read_bytes() == tokenizer
    other = finetune("evaluate", str(run), "--checkpoint", "latest", "--data", "kept.csv", folder=place)
    assert other.code == 0, other.output
    assert finetune("report", str(run), folder=place).code == 0
