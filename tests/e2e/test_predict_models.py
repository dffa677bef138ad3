"""`finetune predict` and finetune.load give the same records, and so do two ranks that hold slices of the model."""

import json
import random

import pytest
import torch

import finetune
from tests.distributed.test_slices import PROMPTS, write_model
from tests.faults import run_finetune

pytestmark = pytest.mark.timeout(600)
MINUTES = 240


@pytest.fixture(scope="module", params=[False, True], ids=["classes", "replies"])
def place(request, tmp_path_factory):
    """A model folder, and rows of which one is empty."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "model", replies=request.param)
    draw, role = random.Random(2), "prompt" if request.param else "text"
    texts = [" ".join(draw.choices(PROMPTS, k=draw.randint(1, 3))) for _ in range(30)]
    texts[7] = " "
    rows = [{role: text} for text in texts]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder, rows, ["--max-new-tokens", "5"] if request.param else []


def records(place, name, *more):
    folder, _, options = place
    words = ["predict", "model", "--data", "rows.jsonl", "--output", name, *options, *more]
    finished = run_finetune(words, MINUTES, folder=folder)
    assert finished.code == 0, finished.output
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_the_command_the_package_and_slices_say_the_same(place):
    folder, rows, options = place
    whole = records(place, "whole.jsonl", "--processes", "1")
    loaded = finetune.load(folder / "model").predict(rows, **({"new_tokens": 5} if options else {}))
    assert loaded == whole and whole[7]["error"]["kind"] == "empty"
    sliced = records(place, "sliced.jsonl", "--processes", "2", "--slices", "2")
    assert [row["row"] for row in sliced] == list(range(30))
    for one, other in zip(sliced, whole, strict=True):
        if "score" in other:
            assert one["label"] == other["label"] and one["score"] == pytest.approx(other["score"], abs=1e-5)
        else:
            assert one.get("text") == other.get("text") and one.get("error") == other.get("error")


def test_slices_that_do_not_fit_are_refused(place):
    finished = run_finetune(
        ["predict", "model", "--data", "rows.jsonl", "--output", "x.jsonl", "--processes", "3", "--slices", "2"],
        MINUTES,
        folder=place[0],
    )
    assert finished.code == 2 and "3 processes are no whole number of replicas of 2" in finished.output
