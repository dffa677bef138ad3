"""Tests that pieces of text add up to the text of all tokens, and that stops are found wherever tokens end."""

from __future__ import annotations

import pytest
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer

from finetune.inference.generation.text_stream import TextStream
from tests.unit.inference.generation.models import letters

_BYTES = ByteLevelBPETokenizer()
_BYTES.train_from_iterator(
    ["the cat and the dog and the cat, then the dog"] * 3, vocab_size=300, special_tokens=["<end>"]
)
BYTES = hf.PreTrainedTokenizerFast(tokenizer_object=_BYTES._tokenizer, eos_token="<end>")


@given(st.text(max_size=40))
def test_pieces_add_up_to_the_text(text: str) -> None:
    ids = BYTES(text)["input_ids"]
    stream = TextStream(BYTES)
    pieces = [stream.push(id) for id in ids]
    pieces.append(stream.close())
    assert "".join(pieces) == stream.text == BYTES.decode(ids)


def test_a_character_of_several_tokens_is_one_piece() -> None:
    ids = BYTES("a\N{PILE OF POO}b")["input_ids"]
    stream = TextStream(BYTES)
    pieces = [stream.push(id) for id in ids]
    assert len(ids) == 6
    assert [piece for piece in pieces if piece] == ["a", "\N{PILE OF POO}", "b"]


@given(st.text(alphabet="AB", max_size=30), st.lists(st.text(alphabet="AB", min_size=1, max_size=4), max_size=3))
def test_a_stop_is_found_where_it_first_ends(text: str, stops: list[str]) -> None:
    tokenizer = letters()
    stream = TextStream(tokenizer, stops)
    pieces = []
    for id in tokenizer(text)["input_ids"] if text else []:
        pieces.append(stream.push(id))
        if stream.stopped:
            break
    pieces.append(stream.close())
    ends = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
    first = min(end for end, _ in ends) if ends else len(text)
    expected = min((start for end, start in ends if end == first), default=len(text))
    assert "".join(pieces) == text[:expected]
    assert stream.stopped == bool(ends)


@pytest.mark.parametrize("special", [1, 2])
def test_special_tokens_are_no_text(special: int) -> None:
    tokenizer = letters()
    stream = TextStream(tokenizer)
    for id in [40, special, 41]:
        stream.push(id)
    assert stream.text + stream.close() == tokenizer.decode([40, 41])
