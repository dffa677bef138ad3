"""finetune.load: records for rows of every kind, and transformers' own pipelines say the same on the exported folder."""

from __future__ import annotations

import json
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

import finetune
from finetune.app.argument_names import in_arguments
from finetune.app.export import export
from finetune.app.kept_files import record_kept_files
from finetune.app.loaded import LoadedModel, _Answers
from finetune.errors import UserError
from finetune.inference.answering import RowError
from finetune.tracking.run import Run
from tests import asking
from tests.contract.examples import EXAMPLES
from tests.prepared import Prepared, prepare
from tests.stored_runs import store_run, trained_like

torch.set_num_threads(1)
TASKS = {example.task: example for example in EXAMPLES}
TEXTS = ["a fine film", "dull", "the best of the year, by far", "I slept and slept and slept", "cold"]


class Opened:
    """A stored run, what `finetune export` made of it, and what was built. loaded: by finetune.load."""

    def __init__(self, task: str, folder: Path) -> None:
        example = TASKS[task]
        self.prepared: Prepared = prepare(example.recipe(folder))
        self.model: Any = trained_like(self.prepared.build())
        if hasattr(self.model, "classifier") and task != "image_classification":
            with torch.no_grad():
                self.model.classifier.weight.mul_(8)  # so that answers differ from row to row
        self.run = store_run(self.prepared, self.model, folder)
        self.exported = folder / "exported"
        export(self.run, output=self.exported, checkpoint="best", merge=False)
        self.loaded: LoadedModel = finetune.load(self.run)


@pytest.fixture(scope="module")
def open_task(tmp_path_factory: pytest.TempPathFactory) -> Any:
    opened: dict[str, Opened] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))

        def open_one(task: str) -> Opened:
            if task not in opened:
                opened[task] = Opened(task, tmp_path_factory.mktemp(task))
            return opened[task]

        yield open_one


def same_records(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    assert [one["label"] for one in ours] == [one["label"] for one in theirs]
    scores = [torch.tensor([one["score"] for one in side]) for side in (ours, theirs)]
    torch.testing.assert_close(scores[0], scores[1], atol=2e-6, rtol=1e-5)


def test_text_classification_is_what_the_pipeline_says(open_task: Any) -> None:
    opened = open_task("text_classification")
    theirs = pipeline("text-classification", model=str(opened.exported), device="cpu")
    ours = opened.loaded.predict(TEXTS)
    same_records(ours, theirs(TEXTS))
    assert [one["row"] for one in ours] == list(range(5)) and len({one["label"] for one in ours}) == 2
    every = opened.loaded.predict(TEXTS[:2], top_k=2)
    for one, other in zip(every, theirs(TEXTS[:2], top_k=2), strict=True):
        same_records(one["labels"], other)
    assert finetune.load(opened.exported).predict(TEXTS) == ours


def test_image_classification_is_what_the_pipeline_says(open_task: Any, tmp_path: Path) -> None:
    opened = open_task("image_classification")
    pictures = [Image.effect_noise((18, 14), 40 * index + 20).convert("RGB") for index in range(3)]
    theirs = pipeline("image-classification", model=str(opened.exported), device="cpu")
    same_records(opened.loaded.predict(pictures), [one[0] for one in theirs(pictures)])
    pictures[0].save(tmp_path / "a.png")
    (from_file,) = opened.loaded.predict(str(tmp_path / "a.png"))
    assert from_file == opened.loaded.predict(pictures[:1])[0]


def test_long_texts_are_answered_in_blocks_and_reported(open_task: Any) -> None:
    loaded = open_task("text_classification").loaded
    long = " ".join(TEXTS * 30)
    with pytest.warns(UserWarning) as caught:
        first, short, again = loaded.predict([long, "dull", long], block=32, stride=8, top_k=2)
    said = [str(one.message) for one in caught]
    assert any("2 rows: the text is longer than the model takes; it is answered in blocks" in line for line in said)
    assert any(line.startswith("2 rows were cut into ") and "per row" in line for line in said)
    assert {**first, "row": 2} == again and first["score"] == pytest.approx(1 - first["labels"][1]["score"], abs=1e-6)
    same_records([short], loaded.predict(["dull"]))
    (cut,) = loaded.predict([long], top_k=2)
    assert cut["labels"] != first["labels"], "without blocks, the end of the text is not read"
    with pytest.raises(UserError, match="tile: not for text_classification"):
        loaded.predict([long], tile=640)


def test_large_images_are_answered_in_tiles(open_task: Any) -> None:
    loaded = open_task("object_detection").loaded
    picture = Image.effect_noise((150, 90), 90).convert("RGB")
    with pytest.warns(UserWarning, match="1 row was cut into 7 pieces"):
        (tiled,) = loaded.predict([picture], tile=64, overlap=0.25, threshold=0.0)
    (whole,) = loaded.predict([picture], threshold=0.0)
    assert len(tiled["boxes"]) > len(whole["boxes"]) > 0
    assert all(x + wide <= 150.01 and y + high <= 90.01 for x, y, wide, high in (one["box"] for one in tiled["boxes"]))
    (small,) = loaded.predict([picture], tile=150, threshold=0.0)
    assert small == whole, "an image no larger than a tile is not cut"


def test_object_detection_is_what_the_pipeline_says(open_task: Any) -> None:
    opened = open_task("object_detection")
    picture = Image.effect_noise((64, 48), 90).convert("RGB")
    theirs = pipeline("object-detection", model=str(opened.exported), device="cpu")(picture, threshold=0.005)
    (ours,) = opened.loaded.predict(picture, threshold=0.005)
    theirs.sort(key=lambda one: -one["score"])
    assert len(ours["boxes"]) >= len(theirs) == 6  # the pipeline keeps as many as there are queries
    for one, other in zip(ours["boxes"], theirs, strict=False):
        assert one["label"] == other["label"] and one["score"] == pytest.approx(other["score"], abs=2e-5)
        left, top, width, height = one["box"]
        corners = [left, top, left + width, top + height]
        assert corners == pytest.approx([other["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")], abs=1.01)


def test_token_classification_is_what_the_pipeline_says(open_task: Any) -> None:
    opened = open_task("token_classification")
    texts = ["Ann left Rome .", "Bob Ray sees New York ."]
    theirs = pipeline("token-classification", model=str(opened.exported), device="cpu", aggregation_strategy="none")
    for text, ours in zip(texts, opened.loaded.predict(texts), strict=True):
        tokens = theirs(text, ignore_labels=[])
        begins = [text.index(word) for word in ours["words"]]
        firsts = [next(one for one in tokens if one["end"] > begin) for begin in begins]
        assert ours["words"] == text.split() and ours["tags"] == [one["entity"] for one in firsts]
        assert ours["scores"] == pytest.approx([float(one["score"]) for one in firsts], abs=2e-6)


def test_text_generation_is_what_the_pipeline_says(open_task: Any) -> None:
    opened = open_task("causal_lm")
    theirs = pipeline("text-generation", model=str(opened.exported), device="cpu")
    prompts = ["Name a fruit.", "Say hello.", "Why?"]
    talks = [[{"role": "user", "content": prompt}] for prompt in prompts]
    options = {"max_new_tokens": 12, "do_sample": False, "return_full_text": False}
    expected = [one[0]["generated_text"].strip() for one in theirs(talks, **options)]
    for rows in (prompts, [{"messages": talk} for talk in talks]):  # a text is what the user of a chat says
        assert [one["text"] for one in opened.loaded.predict(rows, new_tokens=12)] == expected


def test_an_encoder_decoder_says_what_generate_says(open_task: Any) -> None:
    """transformers 5 has no pipeline for translation and summarization any more."""
    opened = open_task("seq2seq")
    tokenizer = AutoTokenizer.from_pretrained(opened.exported)
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(opened.exported)
    sources = ["ein Hund", "der Mann lacht und lacht"]
    ours = opened.loaded.predict(sources, new_tokens=10)
    for source, one in zip(sources, ours, strict=True):
        ids = torch.tensor([[*tokenizer(source)["input_ids"], tokenizer.eos_token_id]])  # T5's own tokenizer adds it
        made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False)
        assert one["text"] == tokenizer.decode(made[0], skip_special_tokens=True).strip()


def test_rows_of_every_kind(open_task: Any) -> None:
    loaded = open_task("text_classification").loaded
    expected = loaded.predict(TEXTS)
    rows = [{"text": text} for text in TEXTS]
    assert loaded.predict(rows) == expected
    assert loaded.predict(datasets.Dataset.from_list(rows)) == expected
    assert loaded.predict(text for text in TEXTS) == expected
    assert loaded.predict(tuple(TEXTS)) == expected
    assert loaded.predict(TEXTS[0]) == loaded.predict(rows[0]) == expected[:1]
    assert loaded.predict([]) == []
    named = [{"review": text, "id": index * 7} for index, text in enumerate(TEXTS)]
    kept = loaded.predict(named, columns={"text": "review"}, keep=["id"])
    assert kept == [{**one, "id": index * 7} for index, one in enumerate(expected)]


def test_a_row_that_cannot_be_answered_is_an_error_of_its_own(open_task: Any) -> None:
    loaded = open_task("text_classification").loaded
    expected = loaded.predict(TEXTS[:1])[0]
    records = loaded.predict([TEXTS[0], " ", {"text": None}, TEXTS[0]])
    assert [one.get("label") for one in records] == [expected["label"], None, None, expected["label"]]
    assert records[1] == {"row": 1, "error": {"kind": "empty", "message": "text is empty"}}
    assert records[2]["error"]["kind"] == "bad_row"
    image = open_task("image_classification").loaded
    (bad,) = image.predict("/nowhere.png")
    assert bad["error"]["kind"] == "bad_row" and "/nowhere.png" in bad["error"]["message"]


def test_a_text_that_is_cut_is_reported(open_task: Any) -> None:
    loaded = open_task("text_classification").loaded
    with pytest.warns(UserWarning, match="only the first 256 tokens of the text were read") as caught:
        assert "label" in loaded.predict(["a", "word " * 400])[1]
    assert "row 1" in str(caught[0].message)
    with pytest.warns(UserWarning, match="options.max_source_length"):
        open_task("seq2seq").loaded.predict("word " * 400, new_tokens=4)


def test_it_maps_a_dataset(open_task: Any) -> None:
    loaded = open_task("text_classification").loaded
    data = datasets.Dataset.from_list([{"text": text, "n": index} for index, text in enumerate([*TEXTS, " "])])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # datasets warns where it cannot name what it maps with
        mapped = data.map(loaded, batched=True, batch_size=4)
    assert mapped.column_names == ["text", "n", "label", "score", "error"]
    expected = loaded.predict(TEXTS)
    assert mapped["label"][:5] == [one["label"] for one in expected]
    assert mapped["score"][:5] == pytest.approx([one["score"] for one in expected], rel=1e-5)
    assert list(mapped["error"]) == [""] * 5 + ["empty: text is empty"] and mapped["label"][5] is None


def test_it_travels_to_another_process_by_name(open_task: Any) -> None:
    opened = open_task("text_classification")
    stored = pickle.dumps(opened.loaded)
    assert len(stored) < 1_000
    assert pickle.loads(stored).predict(TEXTS) == opened.loaded.predict(TEXTS)
    manifest = next((opened.run / "artifacts").glob("artifacts.json"))
    content = manifest.read_text()
    try:
        manifest.write_text(json.dumps({**json.loads(content), "settings": {"max_length": 9, "label_smoothing": 0.0}}))
        record_kept_files(Run(opened.run))  # as another training would have
        with pytest.raises(UserError, match="has changed since it was loaded"):
            pickle.loads(stored)
    finally:
        manifest.write_text(content)
        record_kept_files(Run(opened.run))


def test_mistakes_are_named(open_task: Any) -> None:
    loaded = open_task("text_classification").loaded
    for rows, choices, said in (
        ([{"texts": "a"}], {}, "text"),
        (["a"], {"temperature": 1.0}, "writes no text"),
        (["a"], {"logprobs": True}, "logprobs does not apply"),
        ([3], {}, "row 0 is int"),
        (3, {}, "holds no rows"),
    ):
        with pytest.raises(UserError, match=said):
            loaded.predict(rows, **choices)
    with pytest.raises(UserError, match="row 0 is str"):
        open_task("reward_model").loaded.predict(["a"])


class BreaksAt:
    """A splitter that raises when it loads a text."""

    def __init__(self, text: str) -> None:
        self.inner, self.ids = asking.recorder().splitter, list(map(ord, text))

    def load(self, examples: Any) -> Any:
        if any(example["input_ids"] == self.ids for example in examples):
            raise ZeroDivisionError("in load")
        return self.inner.load(examples)


def test_a_row_that_cannot_be_loaded_ends_only_itself() -> None:
    answers: Any = object.__new__(_Answers)
    answers.answerer, answers.splitter = asking.AddingAnswerer(), BreaksAt("bc")
    examples = [{"id": row, "input_ids": list(map(ord, text))} for row, text in enumerate(("a", "bc", "d"))]
    outcomes = answers._answer([examples])
    assert outcomes[1] == RowError("bad_row", "ZeroDivisionError: in load")
    assert [outcomes[row].answer.values for row in (0, 2)] == [{"sum": ord("a")}, {"sum": ord("d")}]


def test_a_number_in_place_of_a_text_is_a_warning(open_task: Any) -> None:
    loaded = open_task("text_classification").loaded
    with pytest.warns(UserWarning, match="text: 1 value is a number, read as text"):
        (record,) = loaded.predict([{"text": 17}])
    assert record["label"] == loaded.predict(["17"])[0]["label"]


def test_kernels_are_those_of_predict_and_stay_as_they_were(open_task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for `finetune predict`, in a process whose own models may want it."""
    loaded, asked = open_task("text_classification").loaded, []
    forward = loaded.asked.module.forward

    def watched(*arguments: Any, **named: Any) -> Any:
        asked.append((torch.backends.cuda.cudnn_sdp_enabled(), torch.backends.cudnn.allow_tf32))
        return forward(*arguments, **named)

    monkeypatch.setattr(loaded.asked.module, "forward", watched)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # torch's default: convolutions of float32 are not
    try:
        assert len(loaded.predict(TEXTS)) == len(TEXTS)
        assert set(asked) == {(False, False)}
        assert torch.backends.cuda.cudnn_sdp_enabled() and torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Leave out --top-p, or set --beams 1.", "Leave out top_p, or set beams 1."),
        ("--max-new-tokens", "new_tokens"),
        ("merge it: finetune export RUN --output DIR --merge.", "merge it: finetune export RUN --output DIR --merge."),
        ("Give the run: runs/a --checkpoint step-1", 'Give the run: runs/a checkpoint="step-1"'),
        ("map it: data.columns: {text: <column>}", "map it: columns: {text: <column>}"),
        ("model.source is a file: x", "source is a file: x"),
        ("a dash - and -- two", "a dash - and -- two"),
    ],
)
def test_messages_speak_of_arguments(text: str, told: str) -> None:
    assert in_arguments(text) == told


def test_errors_of_the_python_interface_speak_of_arguments(open_task: Any, tmp_path: Path) -> None:
    loaded = open_task("text_classification").loaded
    (tmp_path / "file").touch()
    calls: list[Any] = [
        lambda: loaded.predict([{"body": "a"}]),
        lambda: loaded.predict(["a"], tile=64),
        lambda: loaded.predict(["a"], merge="mean"),
        lambda: loaded.predict(["a"], threshold=0.5),
        lambda: finetune.load(tmp_path / "file"),
        lambda: finetune.load(loaded.name.partition(" ")[0], task="text-clasification"),
        lambda: finetune.load(open_task("text_classification").exported, checkpoint="latest"),
    ]
    for call in calls:
        with pytest.raises(UserError) as error:
            call()
        assert not re.search(r"--[a-z]|data\.|model\.source", str(error.value)), error.value
