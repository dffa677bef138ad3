"""Blocks hold every token of a long text within special tokens, their answers become one, and short texts stay as they are."""

from __future__ import annotations

import string
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import BertTokenizerFast

from finetune.data.bad_rows import BadRow
from finetune.errors import UserError
from finetune.inference.answering import PIECE, Answered, Chunk, Part, RowError
from finetune.inference.batches import BatchAnswerer
from finetune.inference.pieces.counts import CutRows
from finetune.inference.pieces.options import PieceOptions
from finetune.inference.pieces.splitter import make_splitter
from finetune.inference.whole_rows import WholeRows
from finetune.tasks import CARDS
from tests.unit.inference.pieces.conftest import answer_with, equal_examples, split_and_load

LIMIT = 24
BERT = {"source": "bert", "init": "config"}  # with a tokenizer that has [CLS] and [SEP]
LLAMA = {"source": "llama", "init": "config", "tokenizer": "train:320"}
BODY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
TEXT = "a fine film lovely and warm the best of year by far I laughed cried dull cold long worst slept"
WORDS = TEXT.split()


def text_of(length: int, seed: int = 0) -> str:
    """Words of the training data."""
    return " ".join(np.random.default_rng(seed).choice(WORDS, length))


def text_task(prepared_task: Any, **options: Any) -> Any:
    return prepared_task("text_classification", {**BERT, "config": BODY}, max_length=LIMIT, **options)


@pytest.fixture(scope="session", autouse=True)
def _tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("tokenizer")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_letters, *"?.!"]
    vocabulary += [f"##{letter}" for letter in string.ascii_letters] + ["film", "fine", "lovely", "cold", "dull"]
    BertTokenizerFast(vocab={token: index for index, token in enumerate(vocabulary)}).save_pretrained(folder)
    BERT["tokenizer"] = str(folder)
    yield
    del BERT["tokenizer"]


def content(prepared: Any, ids: Any) -> list[int]:
    special = set(prepared.artifacts.processor.all_special_ids)
    return [int(one) for one in ids if int(one) not in special]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.integers(1, 90), st.integers(10, LIMIT), st.data())
def test_blocks_cover_a_text_within_its_special_tokens(prepared_task: Any, words: int, block: int, data: Any) -> None:
    prepared = text_task(prepared_task)
    stride = data.draw(st.integers(0, block - 3))
    splitter = make_splitter(prepared.task, prepared.artifacts, PieceOptions(block=block, stride=stride))
    row = {"text": text_of(words, seed=words)}
    tokenizer = prepared.artifacts.processor
    whole = tokenizer(row["text"])["input_ids"]
    (examples,) = split_and_load(splitter, [row])
    if len(whole) <= LIMIT:
        assert len(examples) == 1 and PIECE not in examples[0] and examples[0]["input_ids"] == whole
        return
    inner, found = whole[1:-1], []
    for index, example in enumerate(examples):
        ids = example["input_ids"]
        assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id) and len(ids) == block
        assert len(example["token_type_ids"]) == block
        assert (example[PIECE]["index"], example[PIECE]["count"]) == (index, len(examples))
        own = ids[1:-1]
        if index < len(examples) - 1 or not found:
            found = [*found[: len(found) - stride], *own] if index else own
        else:
            shared = len(found) + len(own) - len(inner)
            assert stride <= shared < len(own)
            found = [*found[: len(found) - shared], *own]
    assert found == inner
    assert sum(example[PIECE]["shares"][0] for example in examples) == pytest.approx(len(inner))


def test_blocks_are_those_of_the_tokenizer(prepared_task: Any) -> None:
    """Held against the overflowing tokens of the tokenizers library, whose last block is shorter."""
    prepared = text_task(prepared_task)
    splitter = make_splitter(prepared.task, prepared.artifacts, PieceOptions(block=16, stride=5))
    for length in range(24, 60, 5):
        text = text_of(length, length)
        (examples,) = split_and_load(splitter, [{"text": text}])
        theirs = prepared.artifacts.processor(
            text, truncation=True, max_length=16, stride=5, return_overflowing_tokens=True
        )["input_ids"]
        assert [one["input_ids"] for one in examples][:-1] == theirs[:-1] and len(examples) == len(theirs) > 1
        assert examples[-1]["input_ids"][-len(theirs[-1]) + 1 :] == theirs[-1][1:]


def test_of_a_pair_the_longer_text_is_cut(prepared_task: Any) -> None:
    prepared = text_task(prepared_task)
    splitter = make_splitter(prepared.task, prepared.artifacts, PieceOptions(block=20, stride=3))
    long, short = text_of(40), "cold [SEP] warm"  # a mark in the text is no border
    tokenizer = prepared.artifacts.processor
    rows = [{"text": long, "text_pair": short}, {"text": short, "text_pair": long}]
    for row, long_first in zip(rows, (True, False), strict=True):
        (examples,) = split_and_load(splitter, [row])
        assert len(examples) > 2
        other = tokenizer(short)["input_ids"][1:-1]
        for example in examples:
            ids, kinds = example["input_ids"], example["token_type_ids"]
            assert len(ids) == len(kinds) == 20
            border = kinds.index(1)
            first, second = ids[1 : border - 1], ids[border:-1]
            assert (second if long_first else first) == other
            assert content(prepared, first if long_first else second)
        joined = [one for example in examples for one in content(prepared, example["input_ids"])]
        assert set(content(prepared, tokenizer(long)["input_ids"])) <= set(joined)
    too_long = {"text": text_of(30), "text_pair": text_of(29)}
    (refused,) = splitter.split([too_long], with_targets=False)
    assert isinstance(refused, BadRow) and refused.kind == "too_long" and "no blocks can be made" in str(refused)


def test_rows_that_cannot_be_read_say_why(prepared_task: Any) -> None:
    prepared = text_task(prepared_task)
    splitter = make_splitter(prepared.task, prepared.artifacts, PieceOptions(block=16))
    bad, good = splitter.split([{"text": " "}, {"text": text_of(50)}], with_targets=False)
    assert isinstance(bad, BadRow) and bad.kind == "empty" and len(good) > 2


@pytest.mark.parametrize("how", ["mean", "max"])
@pytest.mark.parametrize("problem", ["single_label", "multi_label"])
def test_scores_of_blocks_become_one(prepared_task: Any, how: str, problem: str) -> None:
    prepared = text_task(prepared_task, problem=problem)
    names = prepared.artifacts.labels
    splitter = make_splitter(prepared.task, prepared.artifacts, PieceOptions(block=16, stride=5, merge=how))
    row = {"text": text_of(50), "label": names[1]}
    (examples,) = split_and_load(splitter, [row], with_targets=True)
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(size=(len(examples), len(names))))
    parts = []
    for example, own in zip(examples, logits, strict=True):
        parts += answer_with(prepared, [example], SimpleNamespace(logits=own[None]))
    merged = splitter.merge(0, parts)
    assert isinstance(merged, Answered) and splitter.merge(0, parts[::-1]) == merged
    scores = (logits.softmax(-1) if problem == "single_label" else logits.sigmoid()).numpy()
    whole = len(prepared.artifacts.processor(row["text"])["input_ids"]) - 2
    cover = np.zeros(whole)
    starts = [int(one[PIECE]["name"].split("tokens ")[1].split()[0]) - 1 for one in examples]
    for start in starts:
        cover[start : start + 14] += 1
    shares = [(1 / cover[start : start + 14]).sum() for start in starts]
    expected = np.average(scores, axis=0, weights=shares) if how == "mean" else scores.max(axis=0)
    if how == "max" and problem == "single_label":
        expected = expected / expected.sum()
    assert merged.answer.values["scores"] == pytest.approx(expected.tolist(), rel=1e-5)
    decided = int(expected.argmax()) if problem == "single_label" else (expected > 0.5).astype(int).tolist()
    assert merged.answer.values["prediction"] == decided
    assert merged.score is not None and merged.score.weight == len(examples)
    assert merged.score.reference == {"reference": 1 if problem == "single_label" else [0, 1]}


def test_head_and_tail_are_one_example(prepared_task: Any) -> None:
    """A quarter of the tokens from the beginning, the others from the end: Sun et al. 2019."""
    prepared = text_task(prepared_task)
    splitter = make_splitter(prepared.task, prepared.artifacts, PieceOptions(block=18, merge="head_tail"))
    row = {"text": text_of(50)}
    whole = prepared.artifacts.processor(row["text"])["input_ids"]
    (split,) = splitter.split([row], with_targets=False)
    (examples,) = split_and_load(splitter, [row])
    (example,) = examples
    assert example["input_ids"] == [*whole[:5], *whole[-13:]] and len(example["token_type_ids"]) == 18
    parts = answer_with(prepared, examples, SimpleNamespace(logits=torch.tensor([[0.1, 0.3]])))
    assert splitter.merge(0, parts) == parts[0].outcome
    cut = CutRows()
    cut.add(split)
    assert cut.report() == [f"of 1 row the middle was left out (head and tail): {len(whole) - 18} tokens"]
    assert f"{len(whole) - 18} tokens between them left out" in example[PIECE]["name"]
    failed = splitter.merge(0, [Part(example[PIECE], RowError("failed", "no answer"))])
    assert failed == RowError("failed", "no answer")


@pytest.mark.parametrize("how", ["mean", "max"])
def test_numbers_of_blocks_become_one(prepared_task: Any, how: str) -> None:
    prepared = prepared_task("sequence_regression", {**BERT, "config": BODY}, max_length=LIMIT)
    splitter = make_splitter(prepared.task, prepared.artifacts, PieceOptions(block=16, stride=0, merge=how))
    (examples,) = split_and_load(splitter, [{"text": "film " * 35, "label": 2.5}], with_targets=True)
    tokens = len(prepared.artifacts.processor("film " * 35)["input_ids"]) - 2
    assert len(examples) == -(-tokens // 14) == 3
    parts = []
    for number, example in zip((1.0, 5.0, 3.0), examples, strict=True):
        parts += answer_with(prepared, [example], SimpleNamespace(logits=torch.tensor([[number]])))
    merged = splitter.merge(0, parts[::-1])
    assert isinstance(merged, Answered) and merged.score is not None and merged.score.reference == {"target": 2.5}
    twice = 42 - tokens  # tokens that the last two blocks share
    shares = [14, 14 - twice / 2, 14 - twice / 2]
    expected = np.average([1.0, 5.0, 3.0], weights=shares) if how == "mean" else 5.0
    assert merged.answer.values["value"] == pytest.approx(expected)


@pytest.mark.parametrize("model", [BERT, LLAMA], ids=["pair of texts", "conversation"])
def test_replies_of_a_pair_are_cut_each_on_its_own(prepared_task: Any, model: Any) -> None:
    body = BODY if model is BERT else {**BODY, "num_key_value_heads": 2, "max_position_embeddings": 128}
    prepared = prepared_task("reward_model", {**model, "config": body}, max_length=48)
    assert prepared.artifacts.settings["as_pair"] == (model is BERT)
    splitter = make_splitter(prepared.task, prepared.artifacts, PieceOptions(block=40, stride=4))
    row = {"prompt": "Name a fruit.", "chosen": "Apple. " * 40, "rejected": "A car."}
    for with_targets in (True, False):
        (examples,) = split_and_load(splitter, [row], with_targets=with_targets)
        assert len(examples) > 2 and all(len(one["input_ids"]) == 40 for one in examples)
        assert [one[PIECE]["shares"][1] > 0 for one in examples] == [True] + [False] * (len(examples) - 1)
        rewards = [float(index) for index in range(len(examples))]
        parts = []
        for example, reward in zip(examples, rewards, strict=True):
            outputs = SimpleNamespace(logits=torch.tensor([[reward], [reward + 7]]))
            parts += answer_with(prepared, [example], outputs)
        merged = splitter.merge(0, parts)
        assert isinstance(merged, Answered) and set(merged.answer.values) == {"chosen_reward", "rejected_reward"}
        assert merged.answer.values["rejected_reward"] == 7.0, "the short reply is the first piece's"
        shares = [one[PIECE]["shares"][0] for one in examples]
        assert merged.answer.values["chosen_reward"] == pytest.approx(np.average(rewards, weights=shares))
    (single,) = split_and_load(splitter, [{"prompt": "Name a fruit.", "completion": "Apple. " * 40}])
    assert len(single) == len(examples) and "rejected_input_ids" not in single[0]


def test_short_texts_are_answered_to_the_last_bit_as_without_blocks(prepared_task: Any) -> None:
    """Examples and answers of every blocked task."""
    torch.manual_seed(0)
    prepared = text_task(prepared_task)
    texts = [text_of(length, length) for length in range(1, 30)]
    fitting = [text for text in texts if len(prepared.artifacts.processor(text)["input_ids"]) <= LIMIT]
    rows = [{"text": text, "label": "good"} for text in fitting]
    blocks = make_splitter(prepared.task, prepared.artifacts, PieceOptions(block=16))
    usual = WholeRows(prepared.task, prepared.artifacts)
    model = prepared.build().eval()
    answers = []
    for splitter in (blocks, usual):
        examples = [one for row in split_and_load(splitter, rows, with_targets=True) for one in row]
        answerer = BatchAnswerer(prepared.task, prepared.artifacts, model, torch.device("cpu"))
        answers.append(next(iter(answerer.run([Chunk((0, 0), examples)])))[1])
    assert answers[0] == answers[1] and len(answers[0]) == len(rows) > 5
    for task, row in (
        ("sequence_regression", {"text": "a fine film", "label": 1.0}),
        ("token_classification", {"tokens": ["Ann", "left"], "tags": ["B-per", "O"]}),
        ("reward_model", {"prompt": "Say hello.", "chosen": "Hello!", "rejected": "Go away."}),
    ):
        other = prepared_task(task)
        ours = split_and_load(make_splitter(other.task, other.artifacts, PieceOptions(block=16)), [row])
        theirs = split_and_load(WholeRows(other.task, other.artifacts), [row])
        assert equal_examples(ours[0][0], theirs[0][0]) and len(ours[0]) == 1


def test_blocks_longer_than_the_model_are_refused(prepared_task: Any) -> None:
    prepared = text_task(prepared_task)
    with pytest.raises(UserError, match=f"{LIMIT + 1} tokens, but the model takes {LIMIT}"):
        make_splitter(prepared.task, prepared.artifacts, PieceOptions(block=LIMIT + 1))


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("causal_lm", PieceOptions(block=16), "--block: not for causal_lm: it writes one reply"),
        ("seq2seq", PieceOptions(block=16), "--block: not for seq2seq: it writes one reply"),
        ("preference", PieceOptions(block=16), "--block: not for preference"),
        ("text_classification", PieceOptions(tile=640), "--tile: not for text_classification"),
        ("object_detection", PieceOptions(block=16), "--block: not for object_detection"),
        ("object_detection", PieceOptions(tile=640, merge="max"), "max is not for --tile with object_detection"),
        ("image_classification", PieceOptions(tile=640, merge="head_tail"), "head_tail is not for --tile"),
        ("token_classification", PieceOptions(block=16, merge="mean"), "mean is not for --block"),
        ("text_classification", PieceOptions(block=16, merge="sum"), "--merge: 'sum'"),
        ("text_classification", PieceOptions(merge="max"), "--merge: nothing is cut"),
        ("text_classification", PieceOptions(block=16, stride=16), "--stride: 16 tokens with blocks of 16"),
        ("text_classification", PieceOptions(block=16, stride=-1), "--stride: -1"),
        ("text_classification", PieceOptions(stride=3), "--block is not set"),
        ("text_classification", PieceOptions(block=3), "--block: 3 tokens"),
        ("object_detection", PieceOptions(overlap=0.2), "--tile is not set"),
        ("object_detection", PieceOptions(whole_image=False), "--tile is not set"),
        ("object_detection", PieceOptions(tile=16), "--tile: 16 pixels"),
        ("object_detection", PieceOptions(tile=64, overlap=1.0), "--overlap: 1"),
        ("object_detection", PieceOptions(tile=64, overlap=float("nan")), "--overlap: nan"),
        ("object_detection", PieceOptions(tile=64, max_boxes=0), "--max-boxes: 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(task: str, options: PieceOptions, message: str) -> None:
    with pytest.raises(UserError) as caught:
        options.resolve(CARDS[task])
    said = str(caught.value)
    assert message in said and caught.value.remedy and caught.value.where.startswith("--")
    assert f"{caught.value.where}: {caught.value.where}" not in said


def test_defaults_are_filled_in() -> None:
    assert PieceOptions(tile=640).resolve(CARDS["object_detection"]) == PieceOptions(640, 0.2, True, 1000, merge="mean")
    assert PieceOptions(block=256).resolve(CARDS["text_classification"]) == PieceOptions(
        block=256, stride=64, merge="mean"
    )
    assert PieceOptions().resolve(CARDS["causal_lm"]) == PieceOptions() and not PieceOptions().asked
    assert PieceOptions(tile=640, whole_image=False).to_dict() == {"tile": 640, "whole_image": False}
