"""Model folders: pickles behind other names, names that leave, headers and shapes that would fill the memory, odd settings."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.hostile.attack import ERASE, MARK, PAYLOAD, TITLE, Attack, Payload, Place, put

LOAD = (
    "train",
    "recipe.yaml",
    "--run-dir",
    "new",
    "--set",
    "training={steps: 1, global_batch: 8, learning_rate: 0.001}",
)
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def _recipe(place: Place, **model: Any) -> None:
    def change(tree: dict[str, Any]) -> None:
        tree["model"] = {"source": "model", **model}
        tree["parallel"] = {"processes": 1, "deepspeed": "none"}

    place.recipe(change)


def _loading(change: Callable[[Path], object]) -> Callable[[Place], Sequence[str]]:
    """The small model, changed, loaded by a worker-like process of `finetune inspect`, then by `load_model`."""

    def make(place: Place) -> Sequence[str]:
        change(place.model())
        _recipe(place)
        return LOAD

    return make


def _config(**values: Any) -> Callable[[Place], Sequence[str]]:
    def make(place: Place) -> Sequence[str]:
        place.model(**values)
        _recipe(place)
        return LOAD

    return make


def _indexed(
    names: list[str], write: Callable[[Path], object] = lambda model: None
) -> Callable[[Place], Sequence[str]]:
    def change(model: Path) -> None:
        keys = _header(model / WEIGHTS)
        (model / WEIGHTS).rename(model / "first.safetensors")
        index = {"metadata": {}, "weight_map": {key: names[i % len(names)] for i, key in enumerate(keys)}}
        (model / INDEX).write_text(json.dumps(index))
        write(model)

    return _loading(change)


def _header(path: Path) -> list[str]:
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        return [key for key in json.loads(file.read(size)) if key != "__metadata__"]


def _pickled(name: str) -> Callable[[Path], object]:
    def write(model: Path) -> None:
        (model / name).write_bytes(pickle.dumps(Payload()))

    return write


def _only_pickle(model: Path) -> None:
    (model / WEIGHTS).unlink()
    _pickled("pytorch_model.bin")(model)


def _safetensors(header: bytes, size: int | None = None) -> Callable[[Path], object]:
    def write(model: Path) -> None:
        (model / WEIGHTS).write_bytes(struct.pack("<Q", len(header) if size is None else size) + header)

    return write


def _wide(shape: list[int], end: int) -> bytes:
    return json.dumps(
        {"bert.embeddings.word_embeddings.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}
    ).encode()


def _file(name: str, content: str | bytes) -> Callable[[Path], object]:
    def write(model: Path) -> None:
        (model / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def _tokenizer(
    edit: Callable[[dict[str, Any]], object], name: str = "tokenizer_config.json"
) -> Callable[[Path], object]:
    def write(model: Path) -> None:
        tree = json.loads((model / name).read_text())
        edit(tree)
        (model / name).write_text(json.dumps(tree))

    return write


def _adapter(**values: Any) -> Callable[[Place], Sequence[str]]:
    def make(place: Place) -> Sequence[str]:
        model = place.folder / "model"
        model.mkdir()
        settings = {
            "peft_type": "LORA",
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["query"],
            "bias": "none",
            "base_model_name_or_path": str(place.given.bert),
            "task_type": "SEQ_CLS",
        }
        (model / "adapter_config.json").write_text(json.dumps({**settings, **values}))
        _pickled("adapter_model.bin")(model)
        _recipe(place)
        return LOAD

    return make


def attacks() -> Iterator[Attack]:
    evil = ["evil.bin", "first.safetensors"]
    yield Attack("index names a pickle", _indexed(evil, _pickled("evil.bin")), "pickle")
    yield Attack(
        "index names a pickle called .safetensors.bin",
        _indexed(["x.safetensors.bin"], _pickled("x.safetensors.bin")),
        "pickle",
    )
    for name in (
        "../../x.safetensors",
        "/etc/passwd",
        "../model/first.safetensors",
        "a/../../b.safetensors",
        "..",
        "",
        TITLE,
    ):
        yield Attack(f"index names {name!r}", _indexed([name]), "names")
    yield Attack(
        "index of a million names",
        _loading(_file(INDEX, json.dumps({"weight_map": {f"w{i}": f"f{i}.safetensors" for i in range(300_000)}}))),
        codes=(0, 2),
        seconds=60,
    )
    yield Attack("index nested", _loading(lambda m: ((m / WEIGHTS).unlink(), _file(INDEX, "[" * 100_000)(m))))
    yield Attack("index is a list", _loading(lambda m: ((m / WEIGHTS).unlink(), _file(INDEX, "[]")(m))))
    yield Attack(
        "index maps to numbers",
        _loading(lambda m: ((m / WEIGHTS).unlink(), _file(INDEX, '{"weight_map": {"a": 7}}')(m))),
    )
    yield Attack("only a pickle", _loading(_only_pickle), "Convert")
    yield Attack("a pickle called model.safetensors", _loading(_pickled(WEIGHTS)))
    yield Attack("header of 2^60 bytes", _loading(_safetensors(b"{}", 1 << 60)), "header")
    yield Attack("header of 2^63 bytes", _loading(_safetensors(b"{}", (1 << 64) - 1)), "header")
    yield Attack("header nested", _loading(_safetensors(b"[" * 200_000)), "damaged")
    yield Attack("tensor of 10^18 elements", _loading(_safetensors(_wide([10**9, 10**9], 4 * 10**18))))
    yield Attack("tensor beyond the file", _loading(_safetensors(_wide([10_000, 10_000], 400_000_000))))
    yield Attack("tensor with negative offsets", _loading(_safetensors(_wide([1], -4))))
    yield Attack("empty weights", _loading(_file(WEIGHTS, b"")))
    for key, value in (
        ("num_hidden_layers", 10**8),
        ("hidden_size", 10**9),
        ("vocab_size", 10**11),
        ("intermediate_size", 10**12),
        ("max_position_embeddings", 10**12),
        ("type_vocab_size", 10**10),
        ("num_hidden_layers", 10**30),
        ("num_hidden_layers", -1),
        ("num_attention_heads", 0),
        ("num_attention_heads", 10**9),
        ("hidden_size", "wide"),
        ("hidden_act", "evil" + ERASE),
        ("vocab_size", None),
        ("num_hidden_layers", 1.5),
        ("layer_norm_eps", "x"),
        ("pad_token_id", 10**9),
        ("model_type", "x" * 5000),
        ("model_type", None),
        ("model_type", ["bert"]),
        ("model_type", TITLE),
        ("torch_dtype", "evil"),
        ("architectures", [TITLE]),
        ("attn_implementation", "evil/kernel"),
        ("_attn_implementation", "evil/kernel:f"),
        ("quantization_config", {"quant_method": "evil"}),
        ("quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
        ("auto_map", {"AutoConfig": "evil.Config"}),
        ("id2label", "x"),
        ("id2label", {"a": 1}),
        ("id2label", {str(i): str(i) for i in range(200_000)}),
        ("num_labels", 10**9),
    ):
        codes = (
            (0, 1, 2)
            if key
            in (
                "architectures",
                "auto_map",
                "quantization_config",
                "id2label",
                "num_labels",
                "pad_token_id",
                "torch_dtype",
            )
            else (2,)
        )
        yield Attack(f"config.json: {key} {str(value)[:24]!r}", _config(**{key: value}), codes=codes, seconds=60)
    layers = put("model", "config", value={"num_hidden_layers": 10**8})

    def many(place: Place) -> Sequence[str]:
        place.recipe(layers)
        return LOAD

    yield Attack("model.config: 10^8 layers", many, "layers")
    for text, what in (
        ("[" * 100_000, "nested"),
        ("{", "cut"),
        ("[]", "a list"),
        ("1" * 6000, "long integer"),
        ("", "empty"),
        ("\xff\xfe", "no text"),
        ('{"model_type": "bert", "a": ' + '{"a": ' * 500 + "1" + "}" * 501, "objects 500 deep"),
    ):
        yield Attack(f"config.json {what}", _loading(_file("config.json", text.encode("latin-1"))))
    yield Attack(
        "config.json is a folder", _loading(lambda m: ((m / "config.json").unlink(), (m / "config.json").mkdir()))
    )
    yield Attack("tokenizer.json nested", _loading(_file("tokenizer.json", "[" * 100_000)), codes=(1, 2))
    yield Attack("tokenizer.json of another kind", _loading(_file("tokenizer.json", "[]")))
    yield Attack("tokenizer_config.json nested", _loading(_file("tokenizer_config.json", "[" * 100_000)))
    auto = {"AutoTokenizer": ["evil.Slow", "evil.Fast"]}
    code = _tokenizer(lambda tree: tree.update(auto_map=auto, tokenizer_class="EvilTokenizer"))
    yield Attack(
        "tokenizer with code of its own",
        _loading(lambda m: (code(m), (m / "evil.py").write_text(PAYLOAD))),
        codes=(0, 2),
        seconds=60,
    )
    yield Attack(
        "tokenizer of an absent class",
        _loading(_tokenizer(lambda tree: tree.update(tokenizer_class=TITLE))),
        codes=(0, 2),
        seconds=60,
    )
    yield Attack(
        "tokenizer with a length of 10^30",
        _loading(_tokenizer(lambda tree: tree.update(model_max_length="1e30"))),
        codes=(0, 2),
        seconds=60,
    )
    yield Attack("adapter: pickled weights", _adapter())
    yield Attack("adapter: rank 10^9", _adapter(r=10**9))
    yield Attack("adapter: rank is text", _adapter(r="x"))
    yield Attack("adapter: alpha is a list", _adapter(lora_alpha=[1]))
    yield Attack("adapter: kind of another library", _adapter(peft_type="EVIL" + TITLE))
    yield Attack("adapter: imports a module", _adapter(megatron_config={"a": 1}, megatron_core="evil"))
    yield Attack("adapter: base is itself", _adapter(base_model_name_or_path="model"), codes=(1, 2))
    yield Attack("adapter: base leaves", _adapter(base_model_name_or_path="../../../etc"))
    yield Attack("model folder is a pipe inside", _loading(lambda m: _pipe(m / "config.json")))
    yield Attack("weights are a pipe", _loading(lambda m: _pipe(m / WEIGHTS)))
    yield Attack("tokenizer is a pipe", _loading(lambda m: _pipe(m / "tokenizer.json")))
    yield Attack("model folder named with markup", _named("<script>`x`\n# y"), codes=(0,), seconds=60)


def _pipe(path: Path) -> None:
    import os

    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _named(name: str) -> Callable[[Place], Sequence[str]]:
    """Only `recipes show`: what the model card makes of it is in the unit tests."""

    def make(place: Place) -> Sequence[str]:
        shutil.move(place.model(), place.folder / name.replace("/", "_"))
        place.recipe(put("model", "source", value=name.replace("/", "_")))
        return ("recipes", "show", "recipe.yaml", "--explain")

    return make


__all__ = ["MARK", "attacks"]
