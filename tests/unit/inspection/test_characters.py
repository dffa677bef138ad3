"""Proves what is called odd, which script a letter is of, and that shown text cannot act on a terminal or a page."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.inspection.characters import (
    CharacterCounter,
    Trait,
    find_characters,
    find_mixed_word,
    find_mojibake,
    script_of,
    traits_of,
    visible,
)


@pytest.mark.parametrize(
    ("character", "trait"),
    [
        ("\x1b", Trait.CONTROL),
        ("\x85", Trait.CONTROL),
        ("\ufffd", Trait.REPLACEMENT),
        ("\u200b", Trait.INVISIBLE),
        ("\ufeff", Trait.INVISIBLE),
        ("\u202e", Trait.BIDI),
        ("\u2068", Trait.BIDI),
        ("\ue000", Trait.PRIVATE),
        ("\uffff", Trait.PRIVATE),
        ("\ud800", Trait.SURROGATE),
    ],
)
def test_odd_characters(character: str, trait: Trait) -> None:
    assert traits_of(ord(character)) & trait
    assert CharacterCounter().add(["fine", f"a{character}b", ""]).tolist()[1] & trait
    assert f"U+{ord(character):04X}" in find_characters(f"a{character}b", trait)


@pytest.mark.parametrize("text", ["a\tb\r\nc", "été naïve", "नमस्ते", "می\u200cخواهم", "👩\u200d🚀", "日本語", "שלום"])
def test_ordinary_texts_have_no_odd_characters(text: str) -> None:
    odd = Trait.CONTROL | Trait.REPLACEMENT | Trait.INVISIBLE | Trait.BIDI | Trait.PRIVATE | Trait.SURROGATE
    assert not CharacterCounter().add([text])[0] & int(odd)
    assert find_mojibake(text) == ""
    assert find_mixed_word(text) == ""


@pytest.mark.parametrize("right", ["é", "’", "ü", "“", "日", "👍", "ñ"])
@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
def test_mojibake_of_any_character_is_undone(right: str, encoding: str) -> None:
    try:
        wrong = right.encode().decode(encoding)
    except UnicodeDecodeError:
        pytest.skip("Windows-1252 has no character for one of the bytes")
    assert find_mojibake(f"some {wrong} text").endswith(f"for {right}")
    assert CharacterCounter().add([wrong])[0] & Trait.BYTES


def test_letters_that_only_look_right() -> None:
    assert find_mixed_word("pay with p\u0430ypal") == "p\u0430ypal, where \u0430 is Cyrillic"
    assert find_mixed_word("Москва and London, α and a") == ""


def test_scripts_are_counted() -> None:
    counter = CharacterCounter()
    counter.add(["Abc 12, да", "日本"])
    counter.add(["x"])
    assert counter.scripts() == {"Latin": 4, "spaces": 2, "digits": 2, "Cyrillic": 2, "Han": 2, "punctuation": 1}
    assert script_of(ord("\u0301")) == "marks"


def test_traits_are_those_of_each_text() -> None:
    texts = ["", "plain", "\u200b", "", "да a", "\x07"]
    found = CharacterCounter().add(texts)
    expected = [int(np.bitwise_or.reduce([0, *(traits_of(ord(one)) for one in text)])) for text in texts]
    assert found.tolist() == expected


@settings(max_examples=60)
@given(st.text())
def test_shown_text_is_harmless(text: str) -> None:
    shown = visible(text)
    assert all(unicodedata.category(one) not in ("Cc", "Cs", "Co", "Cn", "Zl", "Zp") for one in shown)
    assert not {"\u202a", "\u202b", "\u202d", "\u202e", "\u2066", "\u2067", "\u2068", "\u200b", "\ufeff"} & set(shown)


def test_shown_text_names_what_it_hides() -> None:
    assert visible("a\x1b[31mb\u202e\n\tc\x9b") == "a\\x1b[31mb\\u202e⏎⇥c\\x9b"
