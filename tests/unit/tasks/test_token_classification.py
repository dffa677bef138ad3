"""Proves how words meet tokens: which piece learns a tag, what is read off again, and how a bad row is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.data.bad_rows import BadRow
from finetune.errors import UserError
from finetune.metrics import MetricSet
from finetune.tasks.choice import choosing_metric
from finetune.tasks.text.words import token_words, word_list
from finetune.tasks.token_classification.tag_names import tag_notes
from tests.prepared import Prepared, prepare_rows

TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
ROWS = [
    {"tokens": ["Ann", "saw", "Rotterdam"], "tags": ["B-per", "O", "B-loc"]},
    {"tokens": ["old", "Ann", "left"], "tags": ["B-per", "I-per", "O"]},
]


def _read(folder: Path, rows: list[dict[str, Any]], **sections: Any) -> Prepared:
    model = {"source": "bert", "init": "config", "tokenizer": "train:262", "config": TINY}
    return prepare_rows(folder, rows, task="token_classification", **{"model": model, **sections})


def test_the_first_piece_of_a_word_learns_its_tag(tmp_path: Path) -> None:
    prepared = _read(tmp_path, ROWS)
    assert prepared.artifacts.labels == ["B-loc", "B-per", "I-per", "O"]
    example = prepared.datasets["train"][0]
    firsts = example["firsts"].tolist()
    assert len(example["input_ids"]) > 3 and firsts[0] == 0 and sorted(firsts) == firsts
    assert [example["labels"][first] for first in firsts] == [1, 3, 0] == example["tags"].tolist()
    assert (example["labels"] != -100).sum() == 3
    batch = prepared.batch()
    assert prepared.task.weight(batch) == 6


def test_all_pieces_may_learn_it(tmp_path: Path) -> None:
    prepared = _read(tmp_path, [*ROWS, {"tokens": ["Rotterdam"], "tags": ["B-per"]}], options={"label_on": "all"})
    place, person = prepared.datasets["train"][0], prepared.datasets["train"][2]
    pieces = len(person["labels"])
    assert pieces > 3 and person["labels"].tolist() == [1] + [2] * (pieces - 1)  # B-per, then I-per
    begin = place["firsts"][2]
    assert place["labels"][begin:].tolist() == [0] * (len(place["labels"]) - begin)  # there is no I-loc


def test_what_the_model_says_is_read_off_first_pieces(tmp_path: Path) -> None:
    prepared = _read(tmp_path, ROWS, options={"max_length": 5}, training={"precision": "fp32"})
    assert prepared.datasets["train"][0]["firsts"].tolist()[-1] == -1  # cut off
    batch = prepared.batch([0])
    outputs = prepared.task.forward(prepared.build().eval(), batch)
    outputs.logits = torch.nn.functional.one_hot(torch.full(batch.inputs["input_ids"].shape, 1), 4).float() * 50
    (answer,), (score,) = prepared.answers(outputs, batch), prepared.scores(outputs, batch)
    cut = [first < 0 for first in batch.meta["firsts"][0]]
    assert answer.values["tags"] == [3 if gone else 1 for gone in cut]  # O where nothing was seen
    assert score.reference["reference_tags"] == [1, 3, 0]
    assert score.weight == cut.count(False)
    assert answer.shown["predicted"].startswith("Ann/B-per saw/B-per")


def test_bad_rows_are_reported_with_their_place(tmp_path: Path) -> None:
    rows = [
        *ROWS,
        {"tokens": ["a", "b"], "tags": ["O"]},
        {"tokens": [], "tags": []},
        {"tokens": ["a", ""], "tags": ["O", "O"]},
        {"tokens": ["a"], "tags": [None]},
        {"tokens": "a b", "tags": ["O", "O"]},
    ]
    with pytest.raises(UserError) as caught:
        _read(tmp_path, rows)
    for told in (
        "train.jsonl:3: 1 tags for 2 words",
        "train.jsonl:4: tokens is empty",
        "train.jsonl:5: tokens: item 2 is '', not a word",
        "train.jsonl:6: tags: item 1 is None, not a word",
        "train.jsonl:7: tokens are a list, not text",
    ):
        assert told in str(caught.value)
    prepared = _read(tmp_path, rows, data={"train": str(tmp_path / "train.jsonl"), "on_bad_row": "skip"})
    assert list(prepared.datasets["train"].ids) == [0, 1]


def test_a_tag_that_training_never_saw_is_reported_with_the_nearest(tmp_path: Path) -> None:
    other = tmp_path / "dev.jsonl"
    other.write_text(json.dumps({"tokens": ["a"], "tags": ["B-pers"]}) + "\n", encoding="utf-8")
    data = {"train": str(tmp_path / "train.jsonl"), "validation": str(other)}
    with pytest.raises(
        UserError, match=r"dev\.jsonl:1: label 'B-pers' does not occur in the training data.*did you mean 'B-per'"
    ):
        _read(tmp_path, ROWS, data=data)


def test_conll_files_are_read_by_their_ending(tmp_path: Path) -> None:
    path = tmp_path / "train.conll"
    path.write_text("Ann\tB-per\nleft\tO\n\nold\tO\n", encoding="utf-8")
    prepared = _read(tmp_path, [], data={"train": str(path)})
    assert prepared.artifacts.labels == ["B-per", "O"] and len(prepared.datasets["train"]) == 2


def test_blanks_before_a_word_and_tokens_over_two_words() -> None:
    words, text = ["ab", "cd", "e"], "ab cd e"
    assert token_words([(0, 0), (0, 2), (2, 5), (5, 7), (0, 0)], words, text) == [-1, 0, 1, 2, -1]
    assert token_words([(0, 1), (1, 4), (4, 5), (6, 7)], words, text) == [0, 0, 1, 2]


NUMBERED = [{"tokens": ["Ann", "saw", "me"], "tags": [1, 0, 0]}, {"tokens": ["old", "Ann"], "tags": [2, 0]}]


def test_tags_without_names_have_no_entity_figure(tmp_path: Path) -> None:
    prepared = _read(tmp_path, NUMBERED, training={"precision": "fp32"})
    (note,) = prepared.facts.notes
    assert note.startswith("THE TAGS HAVE NO NAMES (0, 1, 2)") and "word_accuracy chooses the best checkpoint" in note
    assert "options.labels: [O, B-PER, I-PER]" in note
    assert choosing_metric(prepared.plan, prepared.artifacts) == ("word_accuracy", "max")
    metrics = MetricSet(prepared.plan.training.metrics, **prepared.task.metric_options(prepared.artifacts))
    metrics.add([{"tags": [0, 0, 0], "reference_tags": [1, 0, 0]}])
    assert metrics.compute().scalars == {"word_accuracy": pytest.approx(2 / 3)}
    named = _read(tmp_path, NUMBERED, options={"labels": ["O", "B-PER", "I-PER"]})
    assert not named.facts.notes and choosing_metric(named.plan, named.artifacts) == ("entity_f1", "max")


def test_entity_figures_that_were_asked_for_need_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the tags have no names .0, 1, 2.* entity_f1 cannot be computed") as caught:
        _read(tmp_path, NUMBERED, evaluation={"metrics": ["entity_f1"], "best": "entity_f1"})
    assert "options.labels" in caught.value.remedy
    assert not _read(tmp_path, NUMBERED, evaluation={"metrics": ["word_accuracy"], "best": "loss"}).facts.notes


def test_a_zero_or_a_small_o_among_names_is_reported(tmp_path: Path) -> None:
    rows = [*ROWS, {"tokens": ["a", "b"], "tags": ["0", "o"]}]
    told = " ".join(_read(tmp_path, rows).facts.notes)
    assert "tags: 'o' and '0' among the tags: counted as O" in told and "look alike are kept apart: 'O' and 'o'" in told


def test_names_of_tags_in_a_typed_file_are_kept(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Sequence, Value

    features = Features(
        {"tokens": Sequence(Value("string")), "ner_tags": Sequence(ClassLabel(names=["O", "B-x", "I-x"]))}
    )
    Dataset.from_list(
        [{"tokens": ["a", "b"], "ner_tags": [1, 0]}, {"tokens": ["c"], "ner_tags": [0]}], features=features
    ).to_parquet(tmp_path / "a.parquet")
    prepared = _read(tmp_path, [], data={"train": str(tmp_path / "a.parquet")})
    assert prepared.artifacts.labels == ["O", "B-x", "I-x"]
    assert not [note for note in prepared.facts.notes if "names" in note and "read by their names" not in note]
    assert prepared.datasets["train"][0]["tags"].tolist() == [1, 0]


def test_lists_of_words_and_tags_in_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("tokens,tags\n\"['Ann', 'left']\",\"['B-x', 'O']\"\n\"['she']\",['O']\n", encoding="utf-8")
    prepared = _read(tmp_path, [], data={"train": str(path)})
    assert prepared.artifacts.labels == ["B-x", "O"] and not prepared.facts.notes
    assert [prepared.datasets["train"][index]["tags"].tolist() for index in (0, 1)] == [[0, 1], [1]]


def test_numbers_of_tags() -> None:
    assert word_list([0.0, 1.0, 2], "tags") == ["0", "1", "2"]
    for value in ([-100], [0.5], [float("nan")]):
        with pytest.raises(BadRow, match="item 1 is"):
            word_list(value, "tags")


def test_prefixes_that_are_not_read_are_reported() -> None:
    for names in (["B_PER", "I_PER", "O"], ["b-per", "i-per", "o"]):
        (note,) = tag_notes(names, "tags")
        assert f"write {names[0]}, {names[1]} as B-NAME and I-NAME" in note
    for names in (["B-PER", "I-PER", "O"], ["PER", "LOC", "O"], ["i.e", "noun"], ["B-b_x", "I-b_x", "O"]):
        assert tag_notes(names, "tags") == []
