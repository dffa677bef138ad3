"""`finetune predict` and finetune.load give the same records, and so do two ranks that hold slices or stages of the model."""

import json
import random

import numpy as np
import pytest
import torch

from finetune import load
from tests.distributed.test_slices import PROMPTS, write_model
from tests.distributed.test_staged_answers import random_image, write_classifier

pytestmark = pytest.mark.timeout(600)


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


@pytest.fixture(scope="module")
def records(finetune):
    """(place, output, ...) -> the records that `finetune predict model` writes there"""

    def predict(place, name, *more):
        folder, _, options = place
        words = ["predict", "model", "--data", "rows.jsonl", "--output", name, *options, *more]
        finished = finetune(*words, folder=folder)
        assert finished.code == 0, finished.output
        return [json.loads(line) for line in (folder / name).read_text().splitlines()]

    return predict


def test_the_command_the_package_and_slices_say_the_same(place, records):
    folder, rows, options = place
    whole = records(place, "whole.jsonl", "--processes", "1")
    loaded = load(folder / "model").predict(rows, **({"new_tokens": 5} if options else {}))
    assert loaded == whole and whole[7]["error"]["kind"] == "empty"
    sliced = records(place, "sliced.jsonl", "--processes", "2", "--slices", "2")
    assert [row["row"] for row in sliced] == list(range(30))
    for one, other in zip(sliced, whole, strict=True):
        if "score" in other:
            assert one["label"] == other["label"] and one["score"] == pytest.approx(other["score"], abs=1e-5)
        else:
            assert one.get("text") == other.get("text") and one.get("error") == other.get("error")


def test_what_is_noted_of_a_model_is_said(tmp_path, finetune):
    write_classifier(tmp_path / "model", "resnet")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "float16"}))
    random_image(np.random.default_rng(3)).save(tmp_path / "0.png")
    words = ["predict", "model", "--data", "0.png", "--output", "out.jsonl", "--processes", "1"]
    finished = finetune(*words, folder=tmp_path)
    assert finished.code == 0 and finished.output.count("fp16 needs a GPU: the model computes in fp32 here") == 1


def test_slices_that_do_not_fit_are_refused(place, finetune):
    words = ["predict", "model", "--data", "rows.jsonl", "--output", "x.jsonl", "--processes", "3", "--slices", "2"]
    finished = finetune(*words, folder=place[0])
    assert finished.code == 2 and "3 processes are no whole number of replicas of 2" in finished.output


def test_stages_say_what_one_process_says(tmp_path, records):
    write_classifier(tmp_path / "model", "resnet")
    draw = np.random.default_rng(3)
    for number in range(12):
        random_image(draw).save(tmp_path / f"{number}.png")
    names = ["nowhere.png" if number == 4 else f"{number}.png" for number in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"image": name}) + "\n" for name in names))
    place = tmp_path, names, ["--top-k", "3"]
    whole, staged = records(place, "whole.jsonl", "--processes", "1"), records(place, "staged.jsonl", "--stages", "2")
    assert [row["row"] for row in staged] == list(range(12)) and staged[4] == whole[4]
    assert whole[4]["error"]["kind"] == "bad_row" and len({row.get("score") for row in whole}) > 6
    for one, other in zip(staged, whole, strict=True):
        assert one.get("label") == other.get("label")
        assert one.get("score", 0) == pytest.approx(other.get("score", 0), abs=1e-5)
