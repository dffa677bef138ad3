"""Proves that a user's mistake is told with its place, without a traceback, before any process is launched."""

import time

import pytest

from tests.e2e import tiny

TYPO = {"training": {"global_batch": 8, "epochs": 1, "lerning_rate": 1e-3}}
NO_COLUMN = {"data": {"train": "train.csv", "columns": {"text": "sentence"}}}
NO_FILE = {"data": {"train": "trian.csv"}}
BAD_TARGET = {"adapter": {"targets": ["qury", "value"]}}
BAD_STAGE = {"parallel": {"processes": 2, "deepspeed": "zero9"}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (TYPO, ["lerning_rate", "did you mean", "learning_rate"]),
        (NO_COLUMN, ["sentence", "text"]),
        (NO_FILE, ["trian.csv"]),
        (BAD_STAGE, ["zero9", "zero3"]),
        (BAD_TARGET, ["adapter.targets", "qury", "query"]),
    ],
    ids=["typo", "missing column", "missing file", "unknown stage", "unknown target"],
)
def test_a_mistake_ends_with_2_before_anything_starts(changes, said, workplace, finetune, request):
    name = f"{request.node.callspec.id.replace(' ', '-')}.yaml"
    tiny.write_recipe(workplace, name, **changes)
    began = time.monotonic()
    finished = finetune("train", name, "--run-dir", "never-made")
    assert finished.code == 2, finished.output
    assert "Traceback" not in finished.output and "accelerate launch" not in finished.output
    for text in said:
        assert text in finished.output, finished.output
    assert not (workplace / "never-made").exists()
    assert time.monotonic() - began < 60


def test_a_row_with_an_unknown_label_is_named_before_the_first_step(workplace, finetune):
    lines = (workplace / "train.csv").read_text().splitlines()
    (workplace / "odd.csv").write_text("\n".join([*lines[:20], "a film of its own,odd", *lines[20:]]) + "\n")
    data = {"train": "odd.csv", "validation": "validation.csv"}
    tiny.write_recipe(workplace, "odd.yaml", data=data, options={"labels": ["good", "bad"]})
    finished = finetune("train", "odd.yaml", "--run-dir", "odd")
    assert finished.code == 2, finished.output
    assert "odd.csv" in finished.output and "21" in finished.output and "odd" in finished.output
    assert "Traceback" not in finished.output and not (workplace / "odd" / "metrics.jsonl").exists()


def test_another_recipe_in_the_same_folder_is_refused(workplace, undisturbed, finetune):
    finished = finetune("train", "tiny.yaml", "--run-dir", "undisturbed", "--set", "training.epochs=3")
    assert finished.code == 2 and "another recipe" in finished.output, finished.output
    assert "--set model.source=" in finished.output and " --set model.init=pretrained" in finished.output
