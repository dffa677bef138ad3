"""Proves that `finetune predict` cuts large images and long texts, reports it, and writes the same bytes on any ranks."""

import json
import random

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.errors import EXIT_USER
from tests.contract.examples import EXAMPLES
from tests.prepared import prepare
from tests.stored_runs import store_run, trained_like

pytestmark = pytest.mark.timeout(400)


def store(task, folder, **options):
    """A run of a tiny model, without training."""
    torch.set_num_threads(1)
    example = next(example for example in EXAMPLES if example.task == task)
    prepared = prepare(example.recipe(folder, options={**example.options, **options}))
    store_run(prepared, trained_like(prepared.build()), folder)


@pytest.fixture
def predict(finetune, tmp_path):
    """(what was printed, the records) of `finetune predict run --output OUTPUT ...`"""

    def ask(output, *more):
        finished = finetune("predict", "run", "--output", output, *more, folder=tmp_path)
        assert finished.code == 0, finished.output
        return finished.output, [json.loads(line) for line in (tmp_path / output).read_text().splitlines()]

    return ask


def test_tiles_of_an_image_are_answered_by_several_ranks(tmp_path, predict):
    store("object_detection", tmp_path)
    rng, rows = np.random.default_rng(0), []
    for index, (width, height) in enumerate([(200, 150), (64, 48), (130, 300), (64, 64)]):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(tmp_path / f"{index}-large.png")
        rows.append({"image": str(tmp_path / f"{index}-large.png")})
    (tmp_path / "2-large.png").write_bytes((tmp_path / "2-large.png").read_bytes()[:20_000])  # cut off
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ["--data", "rows.jsonl", "--threshold", "0", "--tile", "64", "--overlap", "0.25", "--budget", "8192"]
    said, records = predict("one.jsonl", *asked)
    assert "2 rows: the image is larger than a tile; it is answered in tiles" in said, said
    assert "2 rows were cut into 32 pieces (16.0 per row, at most 19)" in said, said
    predict("two.jsonl", *asked, "--processes", "2")
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    counts = [len(record["boxes"]) for record in records if "boxes" in record]
    assert len(counts) == 3 and counts[0] > 2 * max(counts[1:]), counts
    error = records[2]["error"]
    assert error["kind"] == "bad_row" and error["message"].startswith("the whole image: broken image"), error
    assert "(19 of 19 pieces failed)" in error["message"]


def test_blocks_of_a_text_are_answered_by_several_ranks(tmp_path, predict, finetune):
    store("token_classification", tmp_path, max_length=32)
    draw = random.Random(0)
    words = ["Ann", "left", "Rome", ".", "Bob", "Ray", "sees", "Oslo"]
    rows = [{"tokens": draw.choices(words, k=count)} for count in (3, 90, 8, 200, 40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ["--data", "rows.jsonl", "--block", "24", "--stride", "8", "--budget", "64"]
    said, records = predict("one.jsonl", *asked)
    assert "rows: the text is longer than the model takes; it is answered in blocks" in said, said
    assert "rows were cut into " in said
    predict("two.jsonl", *asked, "--processes", "2")
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    assert [record["words"] for record in records] == [row["tokens"] for row in rows]
    assert all(None not in record["scores"] for record in records), "every word was seen"
    finished = finetune("predict", "run", "--output", "x.jsonl", *asked, "--tile", "64", folder=tmp_path)
    assert finished.code == EXIT_USER and "--tile: not for token_classification" in finished.output, finished.output
