"""Command lines and recipes: things in place of a path, keys and numbers without end, YAML beyond what recipes need."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

from tests.hostile.attack import Attack, Place
from tests.hostile.attacks_recipes import BASE, _text

TRAIN = ("train", "recipe.yaml", "--run-dir", "new")
ONE_STEP = ("--set", "training={steps: 1, global_batch: 8, learning_rate: 0.001}")


def _alone(*arguments: str) -> Callable[[Place], Sequence[str]]:
    """A command beside a recipe for one process, a run and odd things: a pipe, links to devices, to nothing, to itself."""

    def make(place: Place) -> Sequence[str]:
        place.recipe(lambda tree: tree.update(parallel={"processes": 1, "deepspeed": "none"}))
        place.run()
        os.mkfifo(place.folder / "pipe")
        for name, target in (("zero", "/dev/zero"), ("full", "/dev/full"), ("loop", "loop"), ("gone", "no/where")):
            (place.folder / name).symlink_to(target)
        (place.folder / "folder").mkdir()
        return arguments

    return make


def attacks() -> Iterator[Attack]:
    yield from _of_inputs()
    yield from _of_outputs()
    yield from _of_sets()
    yield from _of_yaml()


def _of_inputs() -> Iterator[Attack]:
    predict = ("predict", "stranger", "--processes", "1", "--output", "out.jsonl", "--data")
    evaluate = ("evaluate", "stranger", "--processes", "1", "--data")
    for name in ("pipe", "zero", "loop", "gone"):
        yield Attack(f"data is {name}: predict", _alone(*predict, name), name)
        yield Attack(f"data is {name}: evaluate", _alone(*evaluate, name), name)
    long = "x" * 5_000
    yield Attack("data of 5,000 letters: predict", _alone(*predict, long), "cannot be used|5,000 characters")
    yield Attack(
        "a model of 5,000 letters: predict",
        _alone("predict", long, *predict[2:], "test.csv"),
        "cannot be used|5,000 characters",
    )
    for name in ("pipe", "zero", "loop", "folder"):
        yield Attack(f"a run is {name}: report", _alone("report", name), name)
        yield Attack(
            f"a tokenizer is {name}", _alone(*TRAIN, "--set", f"model.tokenizer={name}"), "tokenizer|cannot|folder"
        )
        yield Attack(f"DeepSpeed's file is {name}", _alone(*TRAIN, "--set", f"parallel.deepspeed={name}"), name)


def _of_outputs() -> Iterator[Attack]:
    yield Attack("a run folder called -x", _alone("train", "recipe.yaml", "--run-dir", "-x", *ONE_STEP), "model", 0, 60)
    yield Attack("a run folder that is no text", _alone("train", "recipe.yaml", "--run-dir", "\udcff"), "not UTF-8")
    for name in ("/dev/null", "recipe.yaml", "loop"):
        yield Attack(
            f"a run folder is {name}", _alone("train", "recipe.yaml", "--run-dir", name), "cannot write|cannot be used"
        )
    for name in ("pipe", "full"):
        spec = ("dashboard", "stranger", "--spec", name)
        yield Attack(f"a specification is {name}", _alone(*spec), "a pipe or a device")
        page = ("compare", "stranger", "stranger", "--html", name)
        yield Attack(f"a page is {name}", _alone(*page), "a pipe or a device")
    for name in ("folder", "x" * 5_000):
        yield Attack(
            f"a page is {name[:8]}",
            _alone("compare", "stranger", "stranger", "--html", name),
            "is a folder|5,000 char",
        )
    sweep = ("sweep", "recipe.yaml", "--grid", "seed=1,2", "--sweep-dir")
    for name in ("loop", "pipe"):
        yield Attack(f"a folder of sweeps is {name}", _alone(*sweep, name), "cannot write|cannot be used")
    yield Attack("an export is loop", _alone("export", "stranger", "--output", "loop"), "cannot write|cannot be used")


def _of_sets() -> Iterator[Attack]:
    for text, says in (
        ("a." * 5_000 + "b=1", "more than 64 parts"),
        ("data.train.\u00b2.limit=1", "data.train"),
        ("data.train." + "9" * 5_000 + ".limit=1", "data.train"),
        ("data.train.-1.limit=1", "data.train"),
        ("model.tokenizer=train:\u00b2", "not of the form train:"),
        ("model.tokenizer=train:\u0663\u0660\u0660", "not of the form train:"),
        ("training.epochs=\u0663", "whole number"),
        ("training.epochs=" + "9" * 31, "of at most 1,000,000"),
        ("training.global_batch=99999999999", "of at most 10,000,000"),
        ("data.workers=1000000000", "of at most 1,024"),
        ("data.capacity=1000000000000000", "of at most 100,000,000"),
        ("adapter={kind: lora, rank: 1000000000}", "of at most 65,536"),
        ("training.global_batch=1e30", "whole number"),
        ("model.config=&a [*a]", "alias"),
        ("=1", "KEY=VALUE"),
    ):
        yield Attack(f"--set {text[:34]!r}", _alone(*TRAIN, "--set", text), says)


def _of_yaml() -> Iterator[Attack]:
    for what, text, says in (
        ("40,000 keys", "".join(f"a{i}: &a{i} x\n" for i in range(40_000)), "unknown key"),
        ("a key twice", BASE + "seed: 1\nseed: 2\n", "written twice"),
        ("bytes", BASE + "seed: !!binary aGVsbG8=\n", "tag .* is not allowed"),
        ("a set", BASE + "seed: !!set {a}\n", "tag .* is not allowed"),
        ("a merge of a number", BASE + "<<: 5\n", "takes a mapping"),
        ("a list as a key", BASE + "? [a, b]\n: 1\n", "a key is plain text"),
        ("an alias of nothing", BASE + "x: *nope\n", "undefined alias"),
        ("half of a character", BASE + 'x: "\\ud800"\n', "escape"),
        ("two documents", BASE + "---\na: 1\n", "second document"),
        ("Latin-1", BASE.encode() + b"# \xe9\n", "not UTF-8"),
        ("an anchor of 100,000 letters", "a: &" + "x" * 100_000 + " 1", "unknown key"),
        ("a number of underscores", BASE.replace("0.001", "1" + "_" * 100_000 + "x"), "wrong type"),
    ):
        yield Attack(f"YAML: {what}", _text(text), says)
