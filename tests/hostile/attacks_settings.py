"""Model folders: settings that no model has, names and headers of weights, tokenizers whose tables have no end."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.hostile.attack import TITLE, Attack, Place, put
from tests.hostile.attacks_models import INDEX, LOAD, WEIGHTS, _config, _file, _indexed, _loading, _tokenizer

ELSE = "names something else than a safetensors file"


def _header(edit: Callable[[dict[str, Any]], object]) -> Callable[[Place], Sequence[str]]:
    """The header of the weights with other values."""

    def change(model: Path) -> None:
        content = (model / WEIGHTS).read_bytes()
        (size,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + size])
        edit(header)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        (model / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])

    return _loading(change)


def _first(header: dict[str, Any]) -> dict[str, Any]:
    return next(value for key, value in header.items() if key != "__metadata__")


def _sized(name: str) -> Callable[[Path], object]:
    def change(model: Path) -> None:
        if name == "vocab.txt":
            (model / "tokenizer.json").unlink()
        with (model / name).open("wb") as file:
            file.truncate(3 << 30)

    return change


def attacks() -> Iterator[Attack]:
    for key, value, says in (
        ("hidden_dropout_prob", 5, "hidden_dropout_prob is out of range"),
        ("attention_probs_dropout_prob", -0.5, "attention_probs_dropout_prob is out of range"),
        ("layer_norm_eps", -1e300, "layer_norm_eps is out of range"),
        ("return_dict", False, "return_dict is false"),
        ("num_key_value_heads", 7, "not a multiple of num_key_value_heads"),
        ("type_vocab_size", 10**12, "out of range|do not have the shapes|fit"),
        ("text_config", {"num_hidden_layers": 10**7}, "more than 10,000 layers"),
    ):
        yield Attack(f"settings: {key} {value}", _config(**{key: value}), says)
    scaled = put("model", "config", value={"hidden_dropout_prob": 2.0})
    yield Attack("model.config: a dropout of 2", lambda place: (place.recipe(scaled), LOAD)[1], "is out of range")
    for name in ("x.Safetensors", "x.safetensors\n", "x.safetensors\0", "\u2024\u2024/x.safetensors",
                 "C:\\x.safetensors", "x.safetensors/",
                 "http://a/x.safetensors", ".x.safetensors", "~/x.safetensors", "-x.safetensors"):  # fmt: skip
        yield Attack(f"index with {name!r}", _indexed([name, "first.safetensors"]), ELSE)
    for name in ("MODEL.BIN", "x.pt", "x.Ckpt"):
        yield Attack(f"index with {name!r}", _indexed([name, "first.safetensors"]), "names a pickle")
    twice = '{"weight_map": {"a": "first.safetensors", "a": "evil.bin"}}'
    yield Attack("index with a key twice", _loading(_renamed(twice)), "names a pickle")
    link = lambda model: (model / "l.safetensors").symlink_to("/etc/passwd")  # noqa: E731
    yield Attack("index with a link elsewhere", _indexed(["first.safetensors", "l.safetensors"], link), "are damaged")
    pipe = lambda model: os.mkfifo(model / "f.safetensors")  # noqa: E731
    yield Attack("index with a pipe", _indexed(["first.safetensors", "f.safetensors"], pipe), "neither a file nor")
    for what, edit in (
        ("tensors that overlap", lambda header: _first(header).update(data_offsets=[0, 8])),
        ("a type that is none", lambda header: _first(header).update(dtype="EVIL")),
        ("a shape of -1", lambda header: _first(header).update(shape=[-1, 2])),
        ("nested metadata", lambda header: header.update(__metadata__={"format": {"a": 1}})),
    ):
        yield Attack(f"header with {what}", _header(edit), "are damaged")
    for name in ("vocab.txt", "chat_template.jinja"):
        yield Attack(f"{name} of 3 GB", _loading(_sized(name)), "bytes, more than")
    ids = _tokenizer(lambda tree: tree["model"]["vocab"].update(film=2**31), "tokenizer.json")
    yield Attack("a token with the id 2^31", _loading(ids), "a token has the id 2,147,483,648")
    gaps = _tokenizer(lambda tree: tree["model"]["vocab"].update(film=10**7), "tokenizer.json")
    yield Attack("a token with the id 10^7", _loading(gaps), "tokens, and ids up to 10,000,000")
    for name in (
        "generation_config.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "preprocessor_config.json",
    ):
        for text, says in (
            ("[]", "not a JSON object"),
            ('{"a": ' + "9" * 5000 + "}", "5,000 digits"),
            (TITLE, "cannot be read"),
        ):
            yield Attack(f"{name} is {text[:9]!r}", _loading(_file(name, text)), says)


def _renamed(index: str) -> Callable[[Path], object]:
    def change(model: Path) -> None:
        (model / WEIGHTS).rename(model / "first.safetensors")
        (model / INDEX).write_text(index)

    return change
