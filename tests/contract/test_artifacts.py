"""Artifacts that were saved and loaded do the same work: without the training data they encode, build and predict alike."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.data.bad_rows import BadRow
from finetune.data.sources.tables import open_tables
from finetune.errors import UserError
from finetune.models.tokenizer import fingerprint
from finetune.tasks import CARDS
from finetune.tasks.artifacts import FILE, PROCESSOR, has_artifacts, load_artifacts
from tests.contract.examples import EXAMPLES, TinyExample
from tests.contract.test_inference import same
from tests.prepared import Prepared, prepare

torch.set_num_threads(1)


def reload(prepared: Prepared, folder: Path, **options: Any) -> Prepared:
    """The same with artifacts that went through files."""
    prepared.artifacts.save(folder, **options)
    return replace(prepared, artifacts=load_artifacts(folder, prepared.task.card))


@pytest.mark.parametrize("processor", [PROCESSOR, ""], ids=["run-folder", "beside-the-model"])
def test_predictions_are_equal_without_the_training_data(
    example: TinyExample, tmp_path: Path, processor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare(example.recipe(tmp_path))
    rows = [dict(row) for row in open_tables(prepared.plan.recipe, prepared.task.card)["train"]]
    saved = tmp_path / "saved"
    loaded = reload(prepared, saved, processor=processor)
    assert (saved / PROCESSOR).is_dir() == bool(processor) and has_artifacts(saved)
    for file in tmp_path.glob("train.*"):
        file.unlink()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another cache"))

    answers, scores = [], []
    for one in (prepared, loaded):
        encoded = one.task.encode(one.artifacts, rows, with_targets=True)
        assert not [row for row in encoded if isinstance(row, BadRow)]
        examples = [{"id": index, **row} for index, row in enumerate(encoded)]
        if example.task == "preference":  # in training the model at step 0 adds these
            examples = [{**row, "reference": -3.0, "rejected_reference": -4.0} for row in examples]
        batch = one.task.collate(one.artifacts, examples)
        model = one.build().eval()
        with torch.no_grad():
            outputs = one.task.forward(model, batch)
            answers.append(one.answers(outputs, batch))
            scores.append(one.scores(outputs, batch))
            if hasattr(one.task, "generate"):
                answers[-1] += one.task.generate(one.artifacts, model, batch, synced=False)
    assert answers[0] == answers[1] and len(answers[0]) >= 8
    assert scores[0] == scores[1] and len(scores[0]) == 8


def test_what_was_saved_is_what_was_there(example: TinyExample, tmp_path: Path) -> None:
    prepared = prepare(example.recipe(tmp_path))
    artifacts, loaded = prepared.artifacts, reload(prepared, tmp_path / "saved").artifacts
    assert loaded.task == artifacts.task and loaded.labels == artifacts.labels
    assert loaded.options == artifacts.options and type(loaded.options) is type(artifacts.options)
    assert loaded.settings == artifacts.settings
    assert (loaded.classes is None) == (artifacts.classes is None)
    if artifacts.classes is not None and loaded.classes is not None:
        assert loaded.classes.to_dict() == artifacts.classes.to_dict()
    if hasattr(artifacts.processor, "vocab_size"):  # the key of encoded data in the cache
        assert fingerprint(loaded.processor) == fingerprint(artifacts.processor)
    else:
        assert loaded.processor.to_dict() == artifacts.processor.to_dict()


def test_encoded_data_of_an_earlier_start_is_found_again(example: TinyExample, tmp_path: Path) -> None:
    """A resumed run loads its artifacts: they must name the same entry of the cache."""
    prepared = prepare(example.recipe(tmp_path))
    loaded = reload(prepared, tmp_path / "saved")
    (table,) = open_tables(prepared.plan.recipe, prepared.task.card).values()
    entries = sorted((tmp_path / "cache").rglob("*"))
    again = loaded.task.dataset(loaded.plan, loaded.artifacts, table, loaded.facts)
    assert sorted((tmp_path / "cache").rglob("*")) == entries
    held = prepared.datasets["train"]
    assert len(again) == len(held) and all(same(again[index], held[index]) for index in range(len(held)))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder of saved artifacts of text classification."""
    example = next(example for example in EXAMPLES if example.task == "text_classification")
    prepare(example.recipe(tmp_path)).artifacts.save(tmp_path / "saved")
    return tmp_path / "saved"


def damage(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / FILE).read_text(encoding="utf-8"))
    (folder / FILE).write_text(json.dumps({**content, **changes}), encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": 2}, "format 2, this version reads 1"),
        ({"task": "seq2seq"}, "they belong to the task seq2seq, not text_classification"),
        ({"options": {"max_length": -1}}, "max_length"),
        ({"options": {"unknown": 1}}, "unknown"),
        ({"classes": {"names": ["a"]}}, "written"),
        ({"processor": "none"}, "the processor is in processor/ or beside them, not in 'none'"),
    ],
)
def test_artifacts_that_do_not_fit_are_reported(saved: Path, changes: dict[str, Any], reason: str) -> None:
    damage(saved, **changes)
    with pytest.raises(UserError, match="the task artifacts cannot be read") as caught:
        load_artifacts(saved, CARDS["text_classification"])
    assert reason in str(caught.value) and caught.value.where == str(saved / FILE)
    assert "copy the whole run folder" in caught.value.remedy


@pytest.mark.parametrize("kind", ["no folder", "cut", "no tokenizer"])
def test_damaged_artifacts_are_reported(saved: Path, kind: str) -> None:
    if kind == "no folder":
        shutil.rmtree(saved)
        assert not has_artifacts(saved)
    elif kind == "cut":
        (saved / FILE).write_text((saved / FILE).read_text(encoding="utf-8")[:40], encoding="utf-8")
    else:
        for file in (saved / PROCESSOR).iterdir():
            file.unlink()
    with pytest.raises(UserError, match="the task artifacts cannot be read"):
        load_artifacts(saved, CARDS["text_classification"])


def test_saving_again_leaves_no_other_file(saved: Path) -> None:
    before = sorted(path.relative_to(saved) for path in saved.rglob("*"))
    load_artifacts(saved, CARDS["text_classification"]).save(saved)
    assert sorted(path.relative_to(saved) for path in saved.rglob("*")) == before
    assert not [path for path in before if path.name.startswith(".")]
