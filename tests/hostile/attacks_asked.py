"""Model folders that are asked rather than trained: settings of generation, classes and sizes that their files state, and
tokenizers whose expressions take for ever.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.hostile.attack import TITLE, Attack, Place
from tests.hostile.attacks_data import png
from tests.hostile.attacks_models import _file, _tokenizer
from tests.hostile.attacks_templates import LOOP, SHOWN

PREDICT = ("predict", "model", "--data", "asked.jsonl", "--output", "answers.jsonl", "--processes", "1")
CHATS = '{"messages": [{"role": "user", "content": "Hi"}]}\n' * 3
LONG = json.dumps({"text": "a" * 30_000 + "!"}) + "\n"


def _asking(
    kind: str, change: Callable[[Path], object], rows: str = CHATS, words: Sequence[str] = (), **config: Any
) -> Callable[[Place], Sequence[str]]:
    def make(place: Place) -> Sequence[str]:
        model = place.model(kind, **config)
        change(model)
        place.write("asked.jsonl", rows)
        return (*PREDICT, *words)

    return make


def _chatting(change: Callable[[Path], object]) -> Callable[[Place], Sequence[str]]:
    def make(place: Place) -> Sequence[str]:
        change(place.model("llama"))
        return ("chat", "model", "--max-new-tokens", "4")

    return make


def _says_hi() -> None:
    """Standard input is one line, as from a pipe."""
    ours, theirs = os.pipe()
    os.write(theirs, b"Hi\n")
    os.close(theirs)
    os.dup2(ours, 0)
    sys.stdin = os.fdopen(0)


def _generation(**values: Any) -> Callable[[Path], object]:
    return _file("generation_config.json", json.dumps(values))


def _same(model: Path) -> None:
    """As it is."""


def attacks() -> Iterator[Attack]:
    yield from _of_generation()
    yield from _of_tokenizers()
    yield from _of_classes()
    yield from _of_images()
    yield from _of_chats()


ANSWERED = "3 rows answered"


def _of_generation() -> Iterator[Attack]:
    refused, penalty = "cannot be used", "repetition_penalty is"
    for values, says, code in (
        ({"max_new_tokens": 10**9}, ANSWERED, 0),
        ({"max_new_tokens": -1}, refused, 2),
        ({"max_new_tokens": "x"}, refused, 2),
        ({"max_length": 10**30}, ANSWERED, 0),
        ({"do_sample": True, "temperature": "x"}, ANSWERED, 0),
        ({"do_sample": True, "top_p": 5}, ANSWERED, 0),
        ({"num_beams": 10**9}, ANSWERED, 0),
        ({"num_return_sequences": 10**9}, refused, 2),
        ({"repetition_penalty": 0}, penalty, 2),
        ({"repetition_penalty": "x"}, penalty, 2),
        ({"repetition_penalty": TITLE}, penalty, 2),
        ({"repetition_penalty": -1e300}, penalty, 2),
        ({"eos_token_id": 10**12}, ANSWERED, 0),
        ({"eos_token_id": "x"}, ANSWERED, 0),
        ({"pad_token_id": -5}, ANSWERED, 0),
        ({"stop_strings": ["a" * 10**6]}, ANSWERED, 0),
        ({"cache_implementation": "evil"}, refused, 2),
        ({"custom_generate": "evil/repo"}, ANSWERED, 0),
        ({"bad_words_ids": [[10**12]]}, ANSWERED, 0),
        ({"sequence_bias": {"x": 1}}, ANSWERED, 0),
        ({"suppress_tokens": [10**12]}, ANSWERED, 0),
        ({"forced_bos_token_id": 10**12}, ANSWERED, 0),
        ({"no_repeat_ngram_size": 10**9}, ANSWERED, 0),
        ({"min_new_tokens": 10**9}, ANSWERED, 0),
        ({"guidance_scale": "x"}, ANSWERED, 0),
        ({"watermarking_config": 5}, refused, 2),
        ({"compile_config": {"backend": "evil"}}, refused, 2),
        ({"transformers_version": TITLE, TITLE: TITLE}, ANSWERED, 0),
        ({"auto_map": {"GenerationConfig": "evil.X"}}, ANSWERED, 0),
    ):
        name = ", ".join(f"{key}={str(value)[:14]}" for key, value in values.items())
        words = ("--max-new-tokens", "4")
        yield Attack(f"generation: {name!r}", _asking("llama", _generation(**values), words=words), says, code, 60)


def _expression(part: str, pattern: str) -> Callable[[Path], object]:
    kinds = {
        "normalizer": {"type": "Replace", "pattern": {"Regex": pattern}, "content": "b"},
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
    }
    return _plain(_tokenizer(lambda tree: tree.update({part: kinds[part]}), "tokenizer.json"))


def _plain(change: Callable[[Path], object]) -> Callable[[Path], object]:
    """Of a class that takes tokenizer.json as it is, while that of BERT makes some parts of it anew."""

    def changed(model: Path) -> None:
        change(model)
        _tokenizer(lambda tree: tree.update(tokenizer_class="PreTrainedTokenizerFast"))(model)

    return changed


def _of_tokenizers() -> Iterator[Attack]:
    for part in ("normalizer", "pre_tokenizer"):
        for pattern in ("(a+)+$", "(a|aa)+$", "^(([a-z])+.)+[A-Z]([a-z])+$"):
            change = _expression(part, pattern)
            says = "1 of them has an error in place of an answer: 1 bad_row"
            yield Attack(f"{part} {pattern[:30]}", _asking("llama", change, LONG), says, 0, 60)
        for pattern in ("(" * 5000 + "a" + ")" * 5000, "["):
            change = _expression(part, pattern)
            yield Attack(f"{part} {pattern[:30]}", _asking("llama", change, LONG), "cannot be used: .*Oniguruma", 2, 60)


def _of_classes() -> Iterator[Attack]:
    for what, labels, says, code in (
        ("gaps", {"0": "a", "5": "b"}, "numbered 0, 5, not from 0 on", 2),
        ("text as numbers", {"x": "a", "y": "b"}, "cannot be used", 2),
        ("negative", {"-1": "a", "0": "b"}, "numbered -1, 0, not from 0 on", 2),
        ("codes", {"0": TITLE, "1": "\u202e"}, "1 row", 0),
        ("a name of 10 MB", {"0": "x" * 10**7, "1": "b"}, "a name of 10,000,000 characters", 2),
        ("names twice", {"0": "a", "1": "a"}, "2 classes of the model are called 'a'", 0),
        ("empty names", {"0": "", "1": " "}, "has no name", 2),
        ("a list", ["a", "b"], "cannot be used", 2),
        ("nothing", {}, "numbered none", 2),
        ("fewer than the head has", {"0": "a"}, "class|label|shape", 2),
        ("more than the head has", {str(i): str(i) for i in range(9)}, "class|label|shape", 2),
        ("a hundred thousand", {str(i): str(i) for i in range(100_000)}, "shape|class", 2),
    ):
        yield Attack(f"classes: {what}", _image({}, id2label=labels), says, code, 60)


def _of_images() -> Iterator[Attack]:
    edge, odd = "pixels at an edge, more than 16,384", "cannot be (used|read)"
    for values, says, code in (
        ({"size": {"height": 10**9, "width": 10**9}}, edge, 2),
        ({"size": 10**9}, edge, 2),
        ({"size": {"shortest_edge": 10**9}}, edge, 2),
        ({"size": {"longest_edge": 10**9}}, edge, 2),
        ({"crop_size": 10**9, "do_center_crop": True}, edge, 2),
        ({"size": -1}, odd, 2),
        ({"size": "x"}, odd, 2),
        ({"size": {"a": 1}}, odd, 2),
        ({"image_mean": [0.5] * 10**6}, odd, 2),
        ({"resample": 99}, odd, 2),
        ({"image_processor_type": TITLE}, odd, 2),
        ({"image_processor_type": "os.system"}, odd, 2),
        ({"image_std": [0, 0, 0]}, "1 of them has an error", 0),
        ({"image_mean": [1e300] * 3}, "1 of them has an error", 0),
        ({"auto_map": {"AutoImageProcessor": "evil.X"}}, "1 rows? answered", 0),
    ):
        name = ", ".join(f"{key}={str(value)[:20]}" for key, value in values.items())
        yield Attack(f"images: {name!r}", _image(values), says, code, 60)
    size = _image({}, image_size=10**9)
    yield Attack("config.json: image_size 10^9", size, edge)


def _image(settings: dict[str, Any], **config: Any) -> Callable[[Place], Sequence[str]]:
    """A small image classifier with other settings of its processor, and another configuration."""

    def make(place: Place) -> Sequence[str]:
        model = place.model("resnet", **config)
        file = model / "preprocessor_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
        place.write("a.png", png())
        place.write("asked.jsonl", '{"image": "a.png"}\n')
        return PREDICT

    return make


def _template(text: str) -> Callable[[Path], object]:
    def change(model: Path) -> None:
        (model / "chat_template.jinja").unlink(missing_ok=True)
        _tokenizer(lambda tree: tree.update(chat_template=text))(model)

    return change


def _pipe(model: Path) -> None:
    (model / "chat_template.jinja").unlink(missing_ok=True)
    os.mkfifo(model / "chat_template.jinja")


def _of_chats() -> Iterator[Attack]:
    refused, three = "no reply: the chat template refuses", "3 of them have an error in place of an answer: 3 bad_row"
    python = "{{ cycler.__init__.__globals__.os.system('touch PWNED') }}"
    for what, change, talking, asking in (
        ("as it is", _same, ("cut after 4 tokens", 0), (ANSWERED, 0)),
        ("a loop", _template(SHOWN + LOOP), ("took longer", 2), ("took longer", 2)),
        ("20 GB", _template("{{ 'x' * 20000000000 }}"), ("needs more than 1.0 GiB", 2), ("needs more than", 2)),
        ("codes", _template("{{ raise_exception('" + TITLE + "') }}"), (refused + ".*u001b", 1), (three, 0)),
        ("nothing", _template("{{ '' }}"), ("leaves out the text of message 1", 1), (three, 0)),
        ("10 MB", _template("{{ 'x ' * 5000000 }}"), ("leaves out the text of message 1", 1), (three, 0)),
        ("python", _template(python), (refused, 1), (three, 0)),
        ("a pipe", _pipe, ("neither a file nor a folder", 2), ("neither a file nor a folder", 2)),
    ):
        yield Attack(f"chat: {what}", _chatting(change), *talking, 60, before=_says_hi)
        words = ("--max-new-tokens", "4")
        yield Attack(f"predict: {what}", _asking("llama", change, words=words), *asking, 60)
