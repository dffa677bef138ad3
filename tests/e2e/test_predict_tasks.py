"""Proves that `finetune predict` answers for every task: from a run folder and from its exported model, with labels and
without, in every kind of file, on one rank and two, with the metrics of `finetune evaluate`; a bad row ends only itself.

Each task is trained for two steps. All verbs run on forked ranks, as a launcher would start them.
"""

import csv
import io
import json
import os
import random
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from finetune.distributed.failure import read_failures
from finetune.errors import EXIT_USER
from tests.contract.examples import EXAMPLES
from tests.ranks import RankError

pytestmark = pytest.mark.timeout(300)
TASKS = list(dict.fromkeys(example.task for example in EXAMPLES))
LABELS = ("label", "tags", "rejected", "output", "completion", "en", "objects")  # columns of what is to be answered
OPTIONS: dict[str, dict[str, Any]] = {
    "text_classification": {"top_k": 2},
    "image_classification": {"top_k": 2},
    "object_detection": {"threshold": 0.0},
    **{task: {"max_new_tokens": 5} for task in ("causal_lm", "preference")},
    "seq2seq": {"max_new_tokens": 5, "columns": ("source=de", "target=en")},
}
RECORDS = {example.task: example.record for example in EXAMPLES}


def verb_here(folder, verb, **options):
    """A verb on a rank, as a launcher would start it. What it printed."""
    from finetune.app.dispatch import run_verb
    from finetune.app.predict_options import PredictOptions, check_options
    from finetune.app.workers import prediction_reading
    from finetune.inference.prediction import keeper

    os.chdir(folder)
    if verb == "predict":
        options = {"options": PredictOptions(**options)}
        check_options(options["options"])
    thread = partial(prediction_reading.start_keeper, apart=False)  # a process of its own would import torch each time
    with (
        redirect_stdout(io.StringIO()) as said,
        mock.patch.object(prediction_reading, "start_keeper", lambda *given, **_: thread(*given)),
        mock.patch.object(keeper, "_is_single_threaded", lambda: False),
    ):
        run_verb(verb, **options)
    return said.getvalue()


@dataclass
class Trained:
    """A run of two steps in `folder`. data: as it was trained, and as --data takes it."""

    task: str
    folder: Path
    data: str
    pool: Any

    def verb(self, verb, ranks=1, **options):
        return self.pool.run(ranks, verb_here, str(self.folder), verb, **options)[0]

    def predict(self, output, *, ranks=1, model="run", data=None, **options):
        """(what rank 0 said, the output's path)"""
        given = {**OPTIONS.get(self.task, {}), **options}
        said = self.verb("predict", ranks, model=model, data=(data or self.data,), output=Path(output), **given)
        return said, self.folder / output

    def journal(self, output):
        return json.loads((self.folder / f"{output}.parts" / "journal.jsonl").read_text().splitlines()[-1])

    def write(self, name, rows):
        (self.folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return name


@pytest.fixture(scope="module")
def train(pool, tmp_path_factory):
    """(task, options=...) -> its run; trained once for each task and options."""
    made: dict[Any, Trained] = {}

    def get(task, **options):
        key = (task, *options.items())
        if key not in made:
            folder = tmp_path_factory.mktemp(task)
            example = next(example for example in EXAMPLES if example.task == task)
            recipe = example.recipe(folder, options={**example.options, **options})
            recipe |= {
                "training": {"precision": "fp32", "global_batch": 8, "epochs": 2, "learning_rate": 1e-3},
                "tracking": {"wandb": "off"},
            }
            (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
            source = recipe["data"]["train"]
            made[key] = Trained(task, folder, source if isinstance(source, str) else source[0]["source"], pool)
            words = {"recipe": "recipe.yaml", "sets": [], "run_dir": Path("run"), "resume": "auto", "restarts": 0}
            made[key].verb("train", processes=None, **words)
            if task == "causal_lm":  # plain text has no reply that could be expected
                replies = [row for row in labeled_rows(made[key]) if "text" not in row]
                made[key].data = str(folder / made[key].write("replies.jsonl", replies))
        return made[key]

    return get


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def labeled_rows(run):
    if run.task == "seq2seq":
        sides = [(run.folder / f"train.{side}").read_text().splitlines() for side in ("de", "en")]
        return [{"de": source, "en": target} for source, target in zip(*sides, strict=True)]
    return read_jsonl(Path(run.data))


def without_labels(row):
    row = {key: value for key, value in row.items() if key not in LABELS}
    if row.get("messages", [{}])[-1].get("role") == "assistant":
        row["messages"] = row["messages"][:-1]
    return row


def answers(records):
    """Without what only labeled rows have, and empty cells of a table."""
    return [
        {key: value for key, value in row.items() if value not in (None, "") and key != "rejected_reward"}
        for row in records
    ]


def read_csv(path):
    """Numbers, lists and objects as the values that they are."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    kinds = {"row": int, **dict.fromkeys(("score", "value", "reward"), float)}
    kinds |= dict.fromkeys(("labels", "words", "tags", "scores", "entities", "boxes"), json.loads)
    return [{key: kinds.get(key, str)(text) for key, text in row.items() if text} for row in rows]


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_asked_in_every_way(task, train):
    run = train(task)
    rows = labeled_rows(run)
    numbers = list(range(len(rows)))
    one, one_path = run.predict("one.jsonl")
    records = read_jsonl(one_path)
    assert [record["row"] for record in records] == numbers
    for record in records:
        assert "error" not in record, record
        assert RECORDS[task] <= record.keys(), record
    two, two_path = run.predict("two.jsonl", model="run/model", ranks=2)
    assert two_path.read_bytes() == one_path.read_bytes(), "an exported model, and two ranks"
    assert "2 ranks" in two and f"{len(rows)} rows answered" in one
    assert ("say what their answer should be" in one) == (task != "preference"), one

    asked = [{**without_labels(row), "note": f"n{number}"} for number, row in enumerate(rows)]
    options = {"columns": ("source=de",)} if task == "seq2seq" else {}
    run.write("asked.jsonl", asked)
    said, table = run.predict("three.csv", model="run/model", data="asked.jsonl", keep=("note=remark",), **options)
    found = read_csv(table)
    assert [row.pop("remark") for row in found] == [f"n{number}" for number in numbers]
    assert "say what their answer should be" not in said
    _, columns = run.predict("four.parquet", ranks=2, data="asked.jsonl", keep=("note",), **options)
    typed = pq.read_table(columns).to_pylist()
    assert [row.pop("note") for row in typed] == [f"n{number}" for number in numbers]
    assert answers(typed) == answers(found) == answers(records)


@pytest.mark.parametrize("task", [task for task in TASKS if task != "preference"])
def test_metrics_are_those_of_evaluate(task, train):
    run = train(task)
    run.predict("measured.jsonl", ranks=2)
    row = run.journal("measured.jsonl")
    told = {name[8:]: value for name, value in row.items() if name.startswith("metrics/")}
    words = {"checkpoint": "best", "split": "", "read": [], "sets": [], "processes": None}
    run.verb("evaluate", run=Path("run"), data=[run.data], name="mine", **words)
    figures = json.loads((run.folder / "run/evaluations/mine/figures.json").read_text())
    assert "loss" in told
    assert {name: figures[name] for name in told} == pytest.approx(told, rel=1e-5)
    assert row["scored_rows"] == figures["examples"] == len(labeled_rows(run))


LONG = "a dull film " * 200
BAD_TEXTS = [
    ({"text": "a fine film", "label": "good"}, ""),
    ({"text": "", "label": "good"}, "empty"),
    ({"text": " \n "}, "empty"),
    ({"text": None, "label": "bad"}, "bad_row"),
    ({"label": "bad"}, "bad_row"),
    ({"text": LONG, "label": "bad"}, ""),
    ({"text": LONG}, ""),
    ({"text": ["a", "b"]}, "bad_row"),
    ({"text": "a dull film", "label": "unheard of"}, ""),
    ({"text": "lovely and warm"}, ""),
]


def kinds(path):
    return [record.get("error", {}).get("kind", "") for record in read_jsonl(path)]


def test_a_bad_text_ends_only_itself(train):
    run = train("text_classification")
    run.write("texts.jsonl", [row for row, _ in BAD_TEXTS])
    with (run.folder / "texts.jsonl").open("a") as file:
        file.write('{"text": "cut off\n')
    said, one = run.predict("texts-1.jsonl", data="texts.jsonl")
    assert kinds(one) == [*(kind for _, kind in BAD_TEXTS), "bad_row"]
    assert "6 of them have an error in place of an answer: 4 bad_row (first: row 3), 2 empty (first: row 1)" in said, (
        said
    )
    assert "\n  row 3: no value in column text" in said and "\n  row 1: text is empty" in said, said
    assert "2 rows: only the first" in said and "texts.jsonl:6" in said and "texts.jsonl:7" in said, said
    assert "1 row: answered without its target" in said and "texts.jsonl:9" in said and "unheard of" in said, said
    assert "2 of 11 rows say what their answer should be" in said, said
    _, two = run.predict("texts-2.jsonl", data="texts.jsonl", ranks=2, model="run/model")
    assert two.read_bytes() == one.read_bytes()
    with pytest.raises(RankError, match="exit code 1"):
        run.predict("strict.jsonl", data="texts.jsonl", max_errors=2)
    assert "--max-errors is 2" in str(read_failures(run.folder / "strict.jsonl.parts/logs")[0].to_error())


@pytest.mark.parametrize("task", ["image_classification", "object_detection"])
def test_a_bad_image_ends_only_itself(task, train):
    run = train(task)
    rows = labeled_rows(run)[:3]
    broken = run.folder / "broken.png"
    broken.write_bytes(Path(rows[0]["image"]).read_bytes()[:60])
    bad = [{**rows[0], "image": str(broken)}, {"image": "nowhere.png"}, {**rows[1], "image": None}]
    run.write("images.jsonl", [rows[0], *bad, *rows[1:]])
    said, one = run.predict("images-1.jsonl", data="images.jsonl")
    assert kinds(one) == ["", "bad_row", "bad_row", "bad_row", "", ""]
    assert "nowhere.png" in read_jsonl(one)[2]["error"]["message"] and "3 of 6 rows say" in said, said
    _, two = run.predict("images-2.jsonl", data="images.jsonl", ranks=2)
    assert two.read_bytes() == one.read_bytes()


@pytest.mark.parametrize("task", ["text_classification", "image_classification"])
def test_embeddings(task, train):
    run = train(task)
    options = {"embed": True, "normalize": True, "top_k": 1}
    _, one = run.predict("embedded.jsonl", **options)
    _, two = run.predict("embedded-2.jsonl", ranks=2, model="run/model", **options)
    assert two.read_bytes() == one.read_bytes()
    found = np.array([record["embedding"] for record in read_jsonl(one)])
    assert found.shape == (8, 32 if task == "text_classification" else 16)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)
    _, table = run.predict("embedded.parquet", **options)
    assert np.allclose(pq.read_table(table)["embedding"].to_pylist(), found)


def test_embeddings_of_a_model_that_writes_are_refused(train):
    run = train("causal_lm")
    with pytest.raises(RankError, match=f"exit code {EXIT_USER}"):
        run.predict("embedded.jsonl", embed=True)
    said = str(read_failures(run.folder / "embedded.jsonl.parts/logs")[0].to_error())
    assert "--embed needs an encoder" in said, said


def test_boxes_are_drawn(train):
    run = train("object_detection")
    said, _ = run.predict("drawn.jsonl", ranks=2, draw=Path("pictures"))
    pictures = sorted((run.folder / "pictures").glob("*.jpg"))
    assert "8 pictures drawn" in said and len(pictures) == 8
    assert [Image.open(path).size for path in pictures] == [(480, 360)] * 8, "small ones are enlarged"


def test_answers_in_which_nothing_is_found_are_counted(train):
    run = train("object_detection")
    said, one = run.predict("nothing.jsonl", threshold=1.0, keep=("image",))
    assert all(row["boxes"] == [] for row in read_jsonl(one))
    assert "8 rows have no box with a score of 1 or more (first: row 0); --threshold sets it" in said, said
    assert run.journal("nothing.jsonl")["nothing"] == {"boxes": 8}
    said, _ = run.predict("something.jsonl", threshold=0.0)
    assert "no box" not in said, said


def test_tiles_and_blocks_have_the_metrics_of_labeled_rows(train):
    """The pieces of a row are answered by several ranks, and the row is scored as one."""
    texts, images = train("text_classification"), train("image_classification")
    draw, rng = random.Random(1), np.random.default_rng(1)
    words = ["a", "film", "dull", "fine", "lovely", "cold"]
    rows = [{"text": " ".join(draw.choices(words, k=count)), "label": "good"} for count in (3, 300, 400)]
    texts.write("long.jsonl", rows)
    rows = []
    for number, side in enumerate((16, 50, 70)):
        path = images.folder / f"large-{number}.png"
        Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(path)
        rows.append({"image": str(path), "label": "low"})
    images.write("large.jsonl", rows)
    cases = [
        (texts, "long.jsonl", {"block": 24, "stride": 8, "budget": 64}),
        (images, "large.jsonl", {"tile": 32, "overlap": 0.2, "budget": 2048}),
    ]
    for run, data, options in cases:
        said, one = run.predict("pieces-1.jsonl", data=data, **options)
        _, two = run.predict("pieces-2.jsonl", data=data, ranks=2, **options)
        assert two.read_bytes() == one.read_bytes() and kinds(one) == [""] * 3
        assert "2 rows were cut into" in said and "3 rows say what their answer should be" in said, said
