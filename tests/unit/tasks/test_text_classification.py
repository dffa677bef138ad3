"""Proves what the classifier reads of texts, pairs and several labels, and how a long or broken row is met."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.errors import UserError
from finetune.tasks.text.lengths import padded_width
from finetune.tasks.text.limits import limit_of
from tests.prepared import Prepared, prepare_rows

TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def _read(folder: Path, rows: list[dict[str, Any]], **sections: Any) -> Prepared:
    model = {"source": "bert", "init": "config", "tokenizer": "train:300", "config": TINY}
    return prepare_rows(folder, rows, task="text_classification", **{"model": model, **sections})


def test_pairs_are_read_as_one(tmp_path: Path) -> None:
    rows = [
        {"text": "It rains.", "text_pair": "It is wet.", "label": "yes"},
        {"text": "a", "text_pair": "b", "label": "no"},
    ]
    prepared = _read(tmp_path, rows)
    example = prepared.datasets["train"][0]
    assert prepared.artifacts.processor.decode(example["input_ids"]) == "It rains.It is wet."
    assert prepared.artifacts.labels == ["no", "yes"] and example["label"] == 1


def test_several_labels(tmp_path: Path) -> None:
    rows = [{"text": "x y", "label": ["joy", "anger"]}, {"text": "z", "label": "joy|fear"}, {"text": "w", "label": []}]
    prepared = _read(tmp_path, rows, options={"problem": "multi_label"}, training={"precision": "fp32"})
    batch = prepared.batch(range(3))
    options = prepared.task.metric_options(prepared.artifacts)
    assert prepared.artifacts.labels == options["labels"] == ["anger", "fear", "joy"]
    assert options["multi_label"] is True
    assert batch.targets["labels"].tolist() == [[1, 0, 1], [0, 1, 1], [0, 0, 0]]
    model = prepared.build().eval()
    assert model.config.problem_type == "multi_label_classification"
    with torch.no_grad():
        outputs = prepared.task.forward(model, batch)
        answers, scores = prepared.answers(outputs, batch), prepared.scores(outputs, batch)
        loss = prepared.task.loss_sum(prepared.artifacts, outputs, batch)
    assert sum(score.loss for score in scores) == pytest.approx(loss.item(), rel=1e-6)
    assert [len(answer.values["prediction"]) for answer in answers] == [3, 3, 3]


@pytest.mark.parametrize("number", [int, float, bool])
def test_label_vectors_are_classes_by_position(tmp_path: Path, number: Any) -> None:
    vectors = [[1, 0, 1], [0, 0, 1], [1, 1, 0]]
    rows = [{"text": "t", "label": [number(bit) for bit in vector]} for vector in vectors]
    prepared = _read(tmp_path, rows, options={"problem": "multi_label"})
    assert prepared.batch().targets["labels"].tolist() == vectors
    assert prepared.artifacts.labels == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert prepared.facts.notes == [
        "label: vectors of 3 values, 0 or 1: classes by position; classes 3: LABEL_0, LABEL_1, LABEL_2"
    ]
    options = {"problem": "multi_label", "labels": ["joy", "anger", "fear"]}
    assert _read(tmp_path, rows, options=options).artifacts.labels == ["joy", "anger", "fear"]
    with pytest.raises(UserError, match=r"vectors of 3 values, but options\.labels has 2: joy, anger"):
        _read(tmp_path, rows, options={**options, "labels": ["joy", "anger"]})
    with pytest.raises(
        UserError, match=r"train\.jsonl:4: the label vector has 2 values, but those of the training data have 3"
    ):
        _read(tmp_path, [*rows, {"text": "t", "label": [1, 1]}], options={"problem": "multi_label"})


def test_label_vectors_survive_the_artifacts(tmp_path: Path) -> None:
    from finetune.tasks import CARDS
    from finetune.tasks.artifacts import load_artifacts

    rows = [{"text": "t", "label": [1, 0, 1]}, {"text": "u", "label": [0, 0, 1]}]
    prepared = _read(tmp_path, rows, options={"problem": "multi_label"})
    prepared.artifacts.save(tmp_path / "saved")
    loaded = load_artifacts(tmp_path / "saved", CARDS["text_classification"])
    (example,) = prepared.task.encode(loaded, rows[:1], with_targets=True)
    assert example["label"] == [0, 2]


def test_rows_without_a_label_are_learnt_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,label\none,"joy, fear"\ntwo,\nthree,fear\n', encoding="utf-8")
    prepared = _read(tmp_path, [], data={"train": str(path)}, options={"problem": "multi_label"})
    assert prepared.batch().targets["labels"].tolist() == [[1, 1], [0, 0], [1, 0]]
    assert "1 of 2 texts hold several labels, split at ','" in prepared.facts.notes[0]
    assert prepared.facts.notes[1] == "train: 1 of 3 rows have no label: none of the classes applies to them"
    with pytest.raises(UserError, match="no column for label"):
        path.write_text("text\none\n", encoding="utf-8")
        _read(tmp_path, [], data={"train": str(path)}, options={"problem": "multi_label"})


def test_commas_stay_in_the_name_of_a_single_label(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "Paris, France"}, {"text": "b", "label": "Rome, Italy"}]
    assert _read(tmp_path, rows).artifacts.labels == ["Paris, France", "Rome, Italy"]


def test_one_class_in_two_files_written_differently(tmp_path: Path) -> None:
    other = tmp_path / "dev.csv"
    other.write_text("text,label\na,False\nb,True\n", encoding="utf-8")
    rows = [{"text": "a", "label": True}, {"text": "b", "label": False}]
    prepared = _read(tmp_path, rows, data={"train": str(tmp_path / "train.jsonl"), "validation": str(other)})
    assert prepared.artifacts.labels == ["false", "true"]
    assert [prepared.datasets["validation"][index]["label"] for index in (0, 1)] == [0, 1]
    (note,) = prepared.facts.notes
    assert note.startswith(
        "validation: label: 2 classes are written in more than one way, or differently than in training"
    )


def test_batches_are_padded_to_the_longest_and_long_ones_to_a_multiple_of_eight(tmp_path: Path) -> None:
    rows = [{"text": "ab cd ef gh ij", "label": 0}, {"text": "a", "label": 1}]
    prepared = _read(tmp_path, rows, data={"train": str(tmp_path / "train.jsonl"), "packing": "none"})
    examples = [prepared.datasets["train"][index] for index in (0, 1)]
    batch = prepared.task.collate(prepared.artifacts, examples)
    lengths = [len(example["input_ids"]) for example in examples]
    assert batch.inputs["input_ids"].shape[1] == max(lengths) == 5
    assert [padded_width(longest) for longest in (1, 63, 64, 65, 72)] == [1, 63, 64, 72, 72]
    assert batch.inputs["attention_mask"].sum(1).tolist() == lengths
    assert batch.padding == batch.positions - sum(lengths)


@pytest.mark.parametrize(
    ("positions", "capacity", "requested", "limit", "setter"),
    [
        (16, None, 256, 16, "the model's max_position_embeddings"),
        (64, 12, 256, 12, "data.capacity"),
        (16, 24, 8, 8, "options.max_length"),
    ],
)
def test_a_row_that_is_too_long_names_what_sets_the_limit(
    tmp_path: Path, positions: int, capacity: int | None, requested: int, limit: int, setter: str
) -> None:
    config = {**TINY, "max_position_embeddings": positions}
    data = {
        "train": str(tmp_path / "train.jsonl"),
        "packing": "padding_free",
        **({"capacity": capacity} if capacity else {}),
    }
    asked = {"model": {"source": "bert", "init": "config", "tokenizer": "train:300", "config": config}, "data": data}
    prepared = _read(tmp_path, LONG, options={"max_length": requested}, **asked)
    assert f"1 row: only the first {limit} tokens of the text were read ({setter})" in prepared.facts.values["train"]
    with pytest.raises(UserError) as error:
        _read(tmp_path, LONG, options={"max_length": requested, "on_long": "error"}, **asked)
    assert f"tokens, more than {setter} {limit}" in str(error.value)
    copied = pickle.loads(pickle.dumps(limit_of(prepared.artifacts)))
    assert (copied, copied.name) == (limit, setter)  # as worker processes get it


LONG = [{"text": "word " * 40, "label": 0}, {"text": "short", "label": 1}, {"text": "brief", "label": 0}]


def test_a_long_text_is_cut_left_out_or_reported(tmp_path: Path) -> None:
    prepared = _read(tmp_path, LONG, options={"max_length": 16})
    cut = "1 row: only the first 16 tokens of the text were read (options.max_length)"
    assert prepared.datasets["train"].costs[0] == 16 and cut in prepared.facts.values["train"]
    assert prepared.facts.notes == [f"train: {cut} ({tmp_path / 'train.jsonl'}:1)"]
    prepared = _read(tmp_path, LONG, options={"max_length": 16, "on_long": "drop"})
    assert list(prepared.datasets["train"].ids) == [1, 2] and prepared.datasets["train"][0]["id"] == 1
    assert "1 longer than 16 tokens left out" in prepared.facts.values["train"]
    assert prepared.facts.notes == ["train: 1 longer than 16 tokens left out"]
    assert not _read(tmp_path, LONG, options={"max_length": 64}).facts.notes
    with pytest.raises(UserError, match=r"train\.jsonl:1: \d+ tokens, more than options.max_length 16"):
        _read(tmp_path, LONG, options={"max_length": 16, "on_long": "error"})


def test_the_models_own_limit_holds(tmp_path: Path) -> None:
    model = {
        "source": "bert",
        "init": "config",
        "tokenizer": "train:300",
        "config": {**TINY, "max_position_embeddings": 13},
    }
    prepared = _read(tmp_path, LONG, model=model)
    batch = prepared.batch([0])
    assert batch.inputs["input_ids"].shape == (1, 8)
    prepared.task.forward(prepared.build(), batch)


def test_bad_rows_are_reported_with_their_place_or_skipped(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "label": 0},
        {"text": " ", "label": 1},
        {"text": ["b"], "label": 1},
        {"text": "c", "label": 1},
    ]
    with pytest.raises(UserError) as caught:
        _read(tmp_path, rows)
    assert "train.jsonl:2: text is empty" in str(caught.value) and "train.jsonl:3: text is list" in str(caught.value)
    prepared = _read(tmp_path, rows, data={"train": str(tmp_path / "train.jsonl"), "on_bad_row": "skip"})
    assert list(prepared.datasets["train"].ids) == [0, 3] and "2 bad rows skipped" in prepared.facts.values["train"]
    prepared = _read(tmp_path, rows[:2], data={"train": str(tmp_path / "train.jsonl"), "on_bad_row": "skip"})
    assert "1 bad row skipped" in prepared.facts.values["train"]


def test_importing_the_tasks_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    code = (
        "import sys, finetune.tasks; "
        "print([name for name in ('torch', 'transformers', 'datasets', 'peft', 'numpy') if name in sys.modules])"
    )
    root = Path(__file__).resolve().parents[3]
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_model_that_must_be_padded_is_reported(tmp_path: Path) -> None:
    rows = [{"text": "ab cd", "label": 0}, {"text": "a", "label": 1}]
    model = {"source": "deberta-v2", "init": "config", "tokenizer": "train:300", "config": TINY}
    prepared = _read(tmp_path, rows, model=model)
    assert prepared.facts.values["packing"] == "none: padded, as the model cannot take concatenated examples"
    assert "attention_mask" in prepared.batch().inputs
    assert "packing" not in _read(tmp_path, rows).facts.values
    cut = _read(tmp_path, LONG, data={"train": str(tmp_path / "train.jsonl"), "capacity": 12})
    assert cut.datasets["train"].costs[0] == 12 and "only the first 12 tokens" in cut.facts.values["train"]
