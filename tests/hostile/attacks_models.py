"""Model folders: pickles behind other names, names that leave, headers and shapes that would fill the memory, odd settings."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.hostile.attack import ERASE, PAYLOAD, TITLE, Attack, Payload, Place, put

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
DONE = "model +new/model"  # where the trained one is


def _recipe(place: Place, source: str = "model", **model: Any) -> None:
    def change(tree: dict[str, Any]) -> None:
        tree["model"] = {"source": source, **model}
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


def _adapter(*, pickled: bool = False, **values: Any) -> Callable[[Place], Sequence[str]]:
    """An adapter of the small language model, with other values in its settings."""

    def make(place: Place) -> Sequence[str]:
        model = place.folder / "model"
        model.mkdir()
        settings = {
            "peft_type": "LORA",
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["q_proj"],
            "bias": "none",
            "base_model_name_or_path": str(place.given.llama),
            "task_type": "CAUSAL_LM",
        }
        (model / "adapter_config.json").write_text(json.dumps({**settings, **values}))
        _pickled("adapter_model.bin")(model)
        if not pickled:
            _adapter_weights(model)
        place.write("texts.txt", "a b c\n" * 16)

        def change(tree: dict[str, Any]) -> None:
            tree.update(task="causal_lm", data={"train": "texts.txt"}, evaluation={}, options={"max_length": 32})
            tree["model"] = {"source": "model"}
            tree["parallel"] = {"processes": 1, "deepspeed": "none"}

        place.recipe(change)
        return LOAD

    return make


def _adapter_weights(model: Path) -> None:
    import torch
    from safetensors.torch import save_file

    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    weights = {f"{layer}.lora_A.weight": torch.zeros(4, 16), f"{layer}.lora_B.weight": torch.zeros(16, 4)}
    save_file(weights, model / "adapter_model.safetensors")


def attacks() -> Iterator[Attack]:
    yield from _of_indexes()
    yield from _of_weights()
    yield from _of_settings()
    yield from _of_tokenizers()
    yield from _of_adapters()


def _of_indexes() -> Iterator[Attack]:
    evil = ["evil.bin", "first.safetensors"]
    yield Attack("index names a pickle", _indexed(evil, _pickled("evil.bin")), "names a pickle")
    yield Attack(
        "index names x.safetensors.bin",
        _indexed(["x.safetensors.bin"], _pickled("x.safetensors.bin")),
        "names a pickle",
    )
    for name in ("../../x.safetensors", "/etc/passwd", "a/../../b.safetensors", "..", "", TITLE):
        yield Attack(f"index names {name!r}", _indexed([name]), "names something else than a safetensors file")
    yield Attack("index of the hub's cache names a pickle", _of_the_hub("evil.bin"), "names a pickle")
    yield Attack("index of the hub's cache leaves", _of_the_hub("../../x.safetensors"), "names something else")
    many = {"weight_map": {f"w{i}": f"f{i}.safetensors" for i in range(300_000)}}
    yield Attack("index of 300,000 files beside whole weights", _loading(_file(INDEX, json.dumps(many))), DONE, 0, 60)
    for text, says in (
        ("[" * 100_000, "nested"),
        ("[]", "no weight_map"),
        ('{"weight_map": {"a": 7}}', "something else"),
    ):
        yield Attack(f"index {text[:20]}", _loading(_without_weights(INDEX, text)), says)


def _of_weights() -> Iterator[Attack]:
    yield Attack("only a pickle", _loading(_only_pickle), "Convert")
    for name, write, says in (
        ("a pickle called model.safetensors", _pickled(WEIGHTS), "header too large"),
        ("header of 2^60 bytes", _safetensors(b"{}", 1 << 60), "header too large"),
        ("header of 2^64 bytes", _safetensors(b"{}", (1 << 64) - 1), "header too large"),
        ("header nested", _safetensors(b"[" * 200_000), "invalid JSON in header"),
        ("tensor of 10^18 elements", _safetensors(_wide([10**9, 10**9], 4 * 10**18)), "overflow"),
        ("tensor beyond the file", _safetensors(_wide([10_000, 10_000], 400_000_000)), "not fully covered"),
        ("tensor with negative offsets", _safetensors(_wide([1], -4)), "invalid JSON in header"),
        ("empty weights", _file(WEIGHTS, b""), "header too small"),
        ("weights are a pipe", lambda model: _pipe(model / WEIGHTS), "neither a file nor a folder"),
    ):
        yield Attack(name, _loading(write), says)


ODD = "Its settings or files are not what the library expects"


def _of_settings() -> Iterator[Attack]:
    for key, value, says in (
        ("num_hidden_layers", 10**8, "more than 10,000 layers"),
        ("hidden_size", 10**9, "do not have the shapes"),
        ("vocab_size", 10**11, "do not have the shapes"),
        ("max_position_embeddings", 10**12, "do not have the shapes"),
        ("num_hidden_layers", 10**30, "out of range"),
        ("num_hidden_layers", -1, "out of range"),
        ("num_attention_heads", 0, ODD),
        ("num_attention_heads", 10**9, "not a multiple"),
        ("hidden_size", "wide", "expected int"),
        ("hidden_act", "evil" + ERASE, ODD),
        ("vocab_size", None, "expected int"),
        ("layer_norm_eps", "x", "expected float"),
        ("pad_token_id", 10**9, ODD),
        ("model_type", "x" * 5000, "no name of an architecture"),
        ("model_type", None, ODD),
        ("model_type", ["bert"], "no name of an architecture"),
        ("model_type", TITLE, ODD),
        ("attn_implementation", "evil/kernel", "names code of the hub"),
        ("_attn_implementation", "evil/kernel:f", "names code of the hub"),
        ("id2label", "x", ODD),
        ("num_labels", 10**9, "out of range"),
        ("quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}, "cannot be used"),
    ):
        yield Attack(f"config.json: {key} {str(value)[:24]!r}", _config(**{key: value}), says, seconds=60)
    for key, value in (  # which training has no use for
        ("torch_dtype", "evil"),
        ("architectures", [TITLE]),
        ("quantization_config", {"quant_method": "evil"}),
        ("id2label", {str(i): str(i) for i in range(200_000)}),
    ):
        yield Attack(f"config.json: {key} {str(value)[:24]!r}", _config(**{key: value}), DONE, 0, 60)
    layers = put("model", "config", value={"num_hidden_layers": 10**8})
    yield Attack("model.config: 10^8 layers", lambda place: (place.recipe(layers), LOAD)[1], "more than 10,000 layers")
    for text, says in (
        ("[" * 100_000, "nested"),
        ("{", "cannot be read"),
        ("[]", "not a JSON object"),
        ("1" * 6000, "cannot be read"),
        ("", "cannot be read"),
        ("\xff\xfe", "cannot be read"),
        ('{"model_type": "bert", "a": ' + '{"a": ' * 500 + "1" + "}" * 501, "nested"),
    ):
        yield Attack(f"config.json {text[:20]!r}", _loading(_file("config.json", text.encode("latin-1"))), says)
    yield Attack("config.json is a folder", _loading(_folder_for_config), "config.json")
    yield Attack(
        "config.json is a pipe", _loading(lambda model: _pipe(model / "config.json")), "neither a file nor a folder"
    )
    yield Attack(
        "names with markup and codes, on the card and for W&B", _named, DONE, 0, 90, check=_no_markup_on_the_card
    )


def _of_tokenizers() -> Iterator[Attack]:
    yield Attack("tokenizer.json nested", _loading(_file("tokenizer.json", "[" * 100_000)), ODD)
    yield Attack("tokenizer.json of another kind", _loading(_file("tokenizer.json", "[]")), ODD)
    length = _tokenizer(lambda tree: tree.update(model_max_length="1e30"))
    yield Attack("tokenizer with a length that is text", _loading(length), ODD)
    yield Attack("tokenizer_config.json nested", _loading(_file("tokenizer_config.json", "[" * 100_000)), "nested")
    yield Attack("tokenizer.json is a pipe", _loading(lambda model: _pipe(model / "tokenizer.json")), "neither a file")
    auto = {"AutoTokenizer": ["evil.Slow", "evil.Fast"]}
    code = _tokenizer(lambda tree: tree.update(auto_map=auto, tokenizer_class="EvilTokenizer"))
    yield Attack(
        "tokenizer with code of its own",
        _loading(lambda m: (code(m), (m / "evil.py").write_text(PAYLOAD))),
        DONE,
        0,
        60,
    )
    yield Attack(
        "tokenizer of an absent class",
        _loading(_tokenizer(lambda tree: tree.update(tokenizer_class=TITLE))),
        DONE,
        code=0,
        seconds=60,
    )


def _of_adapters() -> Iterator[Attack]:
    yield Attack("adapter as it should be", _adapter(), DONE, 0, 60)
    yield Attack("adapter: pickled weights", _adapter(pickled=True), "pickle")
    yield Attack("adapter: rank 10^9", _adapter(r=10**9), "no LoRA adapter has: r")
    yield Attack("adapter: rank is text", _adapter(r="x"), "no LoRA adapter has: r")
    yield Attack("adapter: alpha is a list", _adapter(lora_alpha=[1]), "no LoRA adapter has: lora_alpha")
    yield Attack("adapter: initial weights of an odd kind", _adapter(init_lora_weights=[7]), "adapter")
    yield Attack(
        "adapter: a rank for single modules", _adapter(rank_pattern={"q_proj": 10**9}), "no LoRA adapter has: r"
    )
    yield Attack("adapter: kind of another library", _adapter(peft_type="EVIL" + TITLE), "can be started from")
    yield Attack("adapter: imports a module", _adapter(megatron_config={"a": 1}, megatron_core="evil"), "to import")
    yield Attack("adapter: base is itself", _adapter(base_model_name_or_path="model"), "is an adapter, too")
    yield Attack("adapter: base leaves", _adapter(base_model_name_or_path="../../../etc"), "is not there")


def _without_weights(name: str, content: str) -> Callable[[Path], object]:
    def change(model: Path) -> None:
        (model / WEIGHTS).unlink()
        _file(name, content)(model)

    return change


def _folder_for_config(model: Path) -> None:
    (model / "config.json").unlink()
    (model / "config.json").mkdir()


def _of_the_hub(named: str) -> Callable[[Place], Sequence[str]]:
    """A model as the hub's client keeps it in its cache, asked for by its id; its index names `named`."""

    def make(place: Place) -> Sequence[str]:
        commit = "0" * 40
        home = place.folder / "hub" / "models--someone--evil"
        (home / "refs").mkdir(parents=True)
        (home / "refs" / "main").write_text(commit)
        snapshot = home / "snapshots" / commit
        shutil.move(place.model(), snapshot)
        keys = _header(snapshot / WEIGHTS)
        (snapshot / WEIGHTS).unlink()
        (snapshot / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(keys, named)}))
        _pickled("evil.bin")(snapshot)
        _recipe(place, source="someone/evil")
        return LOAD

    return make


MARKUP = f"<script>alert(1)</script>`x` [a](http://b) {TITLE}"


def _named(place: Place) -> Sequence[str]:
    """Markup and escape codes wherever a card and W&B have names: model, classes, group, tags, notes, file of the data."""
    name = MARKUP.replace("/", "_")
    shutil.move(place.model(), place.folder / name)
    place.write(f"{name}.csv", "text,label\n" + f"a b,{MARKUP}\nc d,plain\n" * 8)

    def change(tree: dict[str, Any]) -> None:
        tree["model"] = {"source": name}
        tree["data"] = {"train": f"{name}.csv"}
        tree["evaluation"] = {"metrics": ["accuracy"]}
        tree["parallel"] = {"processes": 1, "deepspeed": "none"}
        tree["tracking"] = {"wandb": "offline", "group": MARKUP, "tags": [MARKUP], "log_every": 1}

    place.recipe(change)
    return LOAD


def _no_markup_on_the_card(folder: Path) -> None:
    card = (folder / "new" / "model" / "README.md").read_text(errors="replace")
    bare = re.sub(r"^```.*?^```$", "", card, flags=re.DOTALL | re.MULTILINE)  # what is code is shown as it is
    bare = re.sub(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)", "", bare)
    assert "<script>" not in bare and "[a](http" not in bare and "\x1b" not in card, "markup on the card"
    assert "alert(1)" in card, "what was to be escaped is not on the card"
    (recorded,) = folder.rglob("run-*.wandb")
    written = recorded.read_bytes()
    assert b"alert(1)" in written and TITLE.encode() not in written, "codes for W&B"


def _pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)
