"""Proves that our signatures are those of datasketch, and that near duplicates are found and others are not."""

from __future__ import annotations

import random

import numpy as np
import pytest
from datasketch import MinHash

from finetune.inspection.similar import PERMUTATIONS, SCHEME, Signatures, SimilarTexts, similarity, word_pairs


def signed(texts: list[str]) -> Signatures:
    signatures = Signatures(np.ones(len(texts), bool))
    signatures.add(0, [[("", text)] for text in texts])
    return signatures


def make_texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(f"w{draw.randrange(500)}" for _ in range(draw.randrange(12, 60))) for _ in range(count)]


def test_signatures_are_those_of_datasketch() -> None:
    texts = make_texts(40, 1)
    values = signed(texts).values
    assert values.shape == (40, PERMUTATIONS)
    for text, own in zip(texts, values, strict=True):
        other = MinHash(PERMUTATIONS, scheme=SCHEME, hashfunc=int)
        other.update_batch(word_pairs([("", text)]))
        assert (other.hashvalues == own).all()


def test_planted_near_duplicates_are_found_and_nothing_else() -> None:
    texts, rng = make_texts(300, 2), random.Random(3)
    planted = {}
    for original in range(0, 140, 7):
        words = texts[original].split()
        if len(words) < 30:
            continue
        words[rng.randrange(len(words))] = "changed"
        texts[original + 150], planted[original + 150] = " ".join(words), original
    found = SimilarTexts().insert("train", signed(texts), skip=np.zeros(300, bool), compare=True)
    assert len(planted) > 5
    assert {row: other for row, _, other, _ in found} == planted
    assert all(0.8 <= share < 1 for *_, share in found)


def test_the_similarity_of_a_pair_is_exact() -> None:
    one, other = word_pairs([("", "a b c d e f")]), word_pairs([("", "a b c d e g")])
    assert one is not None
    assert other is not None
    assert similarity(one, other) == 4 / 6


def test_texts_in_other_letters_and_scripts() -> None:
    texts = ["The Quick, brown fox jumps over the lazy dog!", "the quick brown fox jumps over the lazy dog"]
    texts += ["今天天气很好我们去公园散步吧", "今天天气很好我们去公园散步吧。"]
    found = SimilarTexts().insert("train", signed(texts), skip=np.zeros(4, bool), compare=True)
    assert [(row, other, share) for row, _, other, share in found] == [(1, 0, 1.0), (3, 2, 1.0)]


def test_many_texts_of_one_template_do_not_cost_the_square_of_their_number() -> None:
    frame = "please sort the following order into one of these kinds and say why you did so number"
    texts = [f"{frame} {' '.join(make_texts(1, seed)[0].split()[:6])}" for seed in range(600)]
    index = SimilarTexts()
    found = index.insert("train", signed(texts), skip=np.zeros(600, bool), compare=True)
    assert index.crowded > 200
    assert all(share >= 0.8 for *_, share in found)


def test_short_texts_and_rows_outside_the_sample_take_no_part() -> None:
    assert word_pairs([("", "only four words here")]) is None
    chosen = np.array([True, False])
    signatures = Signatures(chosen)
    signatures.add(0, [[("", "one text with enough words in it")]] * 2)
    assert signatures.rows == [0]


def test_another_split_is_compared_with_the_index() -> None:
    texts = make_texts(20, 5)
    index = SimilarTexts()
    index.insert("train", signed(texts), skip=np.zeros(20, bool), compare=False)
    found = index.compare(signed([make_texts(1, 9)[0], texts[7]]), skip=np.zeros(2, bool))
    assert found == [(1, "train", 7, pytest.approx(1.0))]
    assert index.compare(signed([texts[7]]), skip=np.ones(1, bool)) == []


def test_a_line_of_the_user_is_not_like_one_of_the_assistant() -> None:
    asked, said = make_texts(2, 8)
    talks = [
        [("user", asked), ("assistant", said)],
        [("assistant", asked), ("user", said)],
        [("user", f"{asked} please"), ("assistant", said)],
    ]
    signatures = Signatures(np.ones(3, bool))
    signatures.add(0, talks)
    found = SimilarTexts().insert("train", signatures, skip=np.zeros(3, bool), compare=True)
    assert [(row, other) for row, _, other, _ in found] == [(2, 0)]
