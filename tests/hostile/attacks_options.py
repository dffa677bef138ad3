"""Options and environments: numbers that no model takes, columns and texts without end, a machine without a home folder, a
temporary folder, standard streams or files to open.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.hostile.attack import TITLE, Attack, Place

PREDICT = ("predict", "stranger", "--data", "test.csv", "--output", "answers.jsonl", "--processes", "1")
WRITE = ("predict", "model", "--data", "asked.jsonl", "--output", "answers.jsonl", "--processes", "1")


def _of_run(*arguments: str) -> Callable[[Place], Sequence[str]]:
    def make(place: Place) -> Sequence[str]:
        place.recipe(lambda tree: tree.update(parallel={"processes": 1, "deepspeed": "none"}))
        place.run(sealed=True)
        return arguments

    return make


def _of_llama(*arguments: str) -> Callable[[Place], Sequence[str]]:
    def make(place: Place) -> Sequence[str]:
        place.model("llama")
        place.write("asked.jsonl", '{"messages": [{"role": "user", "content": "Hi"}]}\n' * 3)
        return arguments

    return make


def attacks() -> Iterator[Attack]:
    yield from _of_numbers()
    yield from _of_commands()
    yield from _of_columns()
    yield from _of_generation()
    yield from _of_environments()
    yield from _of_variables()


BIG, LONG = "9" * 30, "x" * 100_000


def _of_numbers() -> Iterator[Attack]:
    replicas, odd = "no whole number of replicas", "is not possible"
    for words, says in (
        (("--processes", "1000000000"), "1,000,000,000 processes on one machine"),
        (("--processes", BIG), "processes on one machine"),
        (("--slices", BIG), replicas),
        (("--layers", BIG), "of 0 GPUs"),
        (("--stages", BIG), replicas),
        (("--top-k", "9" * 5000), "exceeded maximum size"),
        (("--threshold", "nan"), "less than or equal to 1"),
        (("--block", "1", "--stride", "0"), "8 tokens at least"),
        (("--block", BIG), "the model takes 64 at most"),
        (("--block", "256", "--stride", "-1"), "-1 tokens with blocks of 256"),
        (("--tile", BIG), "images cannot be cut there"),
        (("--tile", "640", "--overlap", "nan"), "between 0 and 0.9"),
        (("--max-boxes", BIG), "--tile is not set"),
        (("--precision", TITLE), odd),
        (("--quantization", TITLE), odd),
        (("--wandb", TITLE), odd),
        (("--task", TITLE), "there is no task"),
        (("--task", LONG), "there is no task"),
        (("--checkpoint", "../.."), "has no checkpoint"),
        (("--checkpoint", "x" * 5000), "has no checkpoint"),
        (("--checkpoint", "a\nb"), "has no checkpoint"),
        (("--merge", TITLE), "nothing is cut"),
        (("--temperature", "1"), "writes no text"),
        (("--stop", ""), "writes no text"),
    ):
        yield Attack(f"predict {' '.join(words)[:40]}", _of_run(*PREDICT, *words), says)
    for words in (("--top-k", BIG), ("--budget", BIG), ("--max-errors", BIG), ("--max-pixels", BIG)):
        yield Attack(f"predict {' '.join(words)[:40]}", _of_run(*PREDICT, *words), "5 rows answered", 0)
    reached = "can be reached from other machines"
    for words, says in (
        (("--port", "99999999"), "less than or equal to 65535"),
        (("--port", "-1"), "greater than or equal to 0"),
        (("--host", TITLE), reached),
        (("--host", LONG), reached),
        (("--host", ""), reached),
        (("--host", "999.1.1.1"), reached),
        (("--host", "0.0.0.0"), reached),
        (("--host", "::"), reached),
        (("--api-key-env", "NOT_THERE" + TITLE), "is not set, or empty"),
        (("--api-key-env", "====="), "is not set, or empty"),
        (("--drain-seconds", "nan"), "greater than or equal to 0"),
    ):
        yield Attack(f"serve {' '.join(words)[:40]}", _of_run("serve", "stranger", *words), says)


def _of_commands() -> Iterator[Attack]:
    values = "seed=" + ",".join(map(str, range(100_000)))
    for words, says in (
        (("evaluate", "stranger", "--processes", "1000000000"), "processes on one machine"),
        (("evaluate", "stranger", "--name", "../../x"), "cannot name an evaluation"),
        (("evaluate", "stranger", "--name", "x" * 5000), "evaluations/x"),
        (("evaluate", "stranger", "--name", TITLE), "cannot name an evaluation"),
        (("evaluate", "stranger", "--data", "\udcff"), "cannot name data"),
        (("recipes", "new", "causal_lm", "--data", "\udcff", "--output", "r.yaml"), "cannot name data"),
        (("train", "recipe.yaml", "--processes", "1000000000"), "processes on one machine"),
        (("verify", "recipe.yaml", "--processes", "1000000000"), "less than or equal to 8"),
        (("prepare", "recipe.yaml", "--workers", "1000000000"), "less than or equal to 1024"),
        (("cache", "--prune", "--older-than", "nan"), "greater than or equal to 0"),
        (("logs", "stranger", "--rank", "99999999999999"), "no log of rank"),
        (("logs", "stranger", "--rank", "-1"), "greater than or equal to 0"),
        (("sweep", "recipe.yaml", "--grid", values), "more than 10,000 values"),
        (("sweep", "recipe.yaml", "--random", BIG, "--grid", "seed=1..5"), "trials, more than 1,000"),
        (("sweep", "recipe.yaml", "--grid", TITLE + "=1,2"), "unknown key"),
        (("sweep", "recipe.yaml", "--grid", "model.source=/etc/passwd,../x"), "model.source"),
        (("sweep", "recipe.yaml", "--parallel", BIG, "--grid", "seed=1,2"), "less than or equal to 1024"),
        (("recipes", "new", "../../etc/passwd", "--data", "train.csv"), "no task ../../etc/passwd"),
        (("recipes", "show", "../../../etc/passwd"), "neither a file nor a shipped recipe"),
        (("export", "stranger", "--output", "stranger"), "the folder is not empty"),
        (("export", "stranger", "--output", "/"), "the folder is not empty"),
        (("runs", "\x00"), "a null character"),
        ((TITLE,), "No such command"),
        ((LONG,), "No such command"),
    ):
        yield Attack(f"{' '.join(words)[:50]}", _of_run(*words), says)


def _of_columns() -> Iterator[Attack]:
    for words, says in (
        (("--keep", TITLE), "the data has no column"),
        (("--keep", "text=row"), "answers have a field of this name"),
        (("--keep", "text=error_kind"), "answers have a field of this name"),
        (("--keep", "text=a", "--keep", "label=a"), "two columns would have this name"),
        (("--columns", "text=" + TITLE), "the data has no column"),
        (("--columns", "=text"), "is not ROLE=COLUMN"),
        (("--columns", "__class__=text"), "has no role"),
        (("--read", "format=pickle"), "Input should be 'auto'"),
        (("--read", "encoding=" + TITLE), "not the name of an encoding"),
        (("--read", "encoding=zip"), "not the name of an encoding"),
        (("--read", "encoding=idna"), "cannot be decoded"),
        (("--read", "delimiter="), "there is no key 'delimiter'"),
        (("--read", "limit=" + "9" * 5000), "--read limit=9999"),
        (("--read", "limit=-1"), "greater than or equal to 1"),
        (("--read", "revision=../../x"), "has no effect on csv data"),
        (("--data", "-", "--data", "-"), "standard input is given twice"),
        (("--data", "file:///etc/passwd"), "no such file"),
        (("--data", "http://127.0.0.1:9/x.csv"), "no such file"),
        (("--data", "//127.0.0.1/x/y.csv"), "no such file"),
        (("--data", "\udcff"), "cannot name data"),
        (("--data", "[" * 200), "no file matches"),
        (("--draw", "/dev/null"), "finds no boxes"),
    ):
        yield Attack(f"predict {' '.join(words)[:40]!r}", _of_run(*PREDICT, *words), says)
    for name in (TITLE, "x" * 100_000):
        yield Attack(
            f"a column is kept as {name[:9]!r}", _of_run(*PREDICT, "--keep", f"text={name}"), "5 rows answered", 0
        )
    for output, says in (
        ("/dev/null", "is not a file"),
        ("/dev/full", "is not a file"),
        ("answers", "says no format"),
        ("answers.pkl", "says no format"),
        (".jsonl", "says no format"),
        ("stranger/run.json", "exists already"),
        ("test.csv", "exists already"),
        ("/proc/answers.jsonl", "cannot be used"),
        ("x" * 250 + ".jsonl", "a name of 256 bytes"),
        ("\udcff.jsonl", "the name is not UTF-8"),
    ):
        words = ("predict", "stranger", "--data", "test.csv", "--processes", "1", "--output", output)
        yield Attack(f"an output called {output[:30]!r}", _of_run(*words), says)
    odd = TITLE + ".jsonl"
    yield Attack("an output with codes in its name", _of_run(*PREDICT[:4], "--output", odd, *PREDICT[6:]), "001b", 0)


def _of_generation() -> Iterator[Attack]:
    for words, says in (
        (("--temperature", "nan"), "greater than or equal to 0"),
        (("--temperature", "inf"), "inf is out of range"),
        (("--top-p", "nan"), "nan is out of range"),
        (("--top-p", "0"), "is out of range"),
        (("--top-p", "5"), "is out of range"),
        (("--repetition-penalty", "0"), "is out of range"),
        (("--repetition-penalty", "nan"), "is out of range"),
        (("--seed", BIG), "is out of range"),
        (("--beams", "1000000000"), "It must be 1 to 1,024"),
        (("--stop", ""), "is out of range"),
        (("--top-k", "1000000000"), "does not apply to causal_lm"),
    ):
        yield Attack(f"writing {' '.join(words)[:40]}", _of_llama(*WRITE, *words), says)
    for words in (
        ("--temperature", "1e-300"),
        ("--temperature", "1e300"),
        ("--repetition-penalty", "1e300"),
        ("--stop", LONG),
    ):
        few = (*WRITE, "--max-new-tokens", "4", *words)
        yield Attack(f"writing {' '.join(words)[:40]}", _of_llama(*few), "3 rows answered", 0)


def _no_home() -> None:
    os.environ.pop("HOME", None)
    del os.environ["XDG_CACHE_HOME"]


def _home_is_no_folder() -> None:
    os.environ["HOME"] = "/dev/null"
    del os.environ["XDG_CACHE_HOME"]


def _cache_is_no_folder() -> None:
    os.environ["XDG_CACHE_HOME"] = "/dev/null"


def _no_folder() -> None:
    Path("gone").mkdir()
    os.chdir("gone")
    os.rmdir("../gone")  # noqa: PTH106


def _few_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def _small_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))


def _no_stdin() -> None:
    os.close(0)
    sys.stdin = None  # type: ignore[assignment]


def _no_temporary() -> None:
    tempfile.tempdir = None
    tempfile._candidate_tempdir_list = lambda: ["/proc/none"]  # type: ignore[attr-defined]


def _of_environments() -> Iterator[Attack]:
    prepare = ("prepare", "recipe.yaml")
    evaluate = ("evaluate", "stranger", "--processes", "1")
    answered, cache = "5 rows answered", "the cache of converted data cannot be written"
    for what, before, words, says, code in (
        ("without HOME", _no_home, PREDICT, answered, 0),
        ("with HOME=/dev/null", _home_is_no_folder, prepare, cache, 2),
        ("with HOME=/dev/null", _home_is_no_folder, PREDICT, answered, 0),
        ("with a cache in /dev/null", _cache_is_no_folder, PREDICT, answered, 0),
        ("with a cache in /dev/null", _cache_is_no_folder, evaluate, cache, 2),
        ("with 64 open files", _few_files, PREDICT, answered, 0),
        ("with files of 200 kB", _small_files, prepare, "ulimit -f", 2),
        ("with files of 200 kB", _small_files, evaluate, "ulimit -f", 2),
        ("with files of 200 kB", _small_files, ("export", "stranger", "--output", "out"), "File too large", 1),
        ("without standard input", _no_stdin, PREDICT, answered, 0),
        ("without standard input", _no_stdin, prepare, "prepared in", 0),
        ("without a temporary folder", _no_temporary, PREDICT, answered, 0),
        ("in a folder that is gone", _no_folder, PREDICT, "the current folder was removed", 2),
        ("in a folder that is gone", _no_folder, ("train", "quickstart"), "the current folder was removed", 2),
        ("in a folder that is gone", _no_folder, ("doctor",), "the current folder was removed", 2),
    ):
        yield Attack(f"{words[0]} {what}", _of_run(*words), says, code, 60, before=before)


def _of_variables() -> Iterator[Attack]:
    for values, says in (
        ({"RANK": "x", "WORLD_SIZE": "1"}, "RANK='x' is not a whole number"),
        ({"RANK": "-1", "WORLD_SIZE": "1"}, "is not a whole number"),
        ({"RANK": "5", "WORLD_SIZE": "2"}, "LOCAL_RANK is not set"),
        ({"RANK": "0", "WORLD_SIZE": "9" * 5000}, "Unset or correct WORLD_SIZE"),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": TITLE}, "Unset or correct LOCAL_RANK"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": TITLE}, "Export LOCAL_WORLD_SIZE"),
        ({"OMP_NUM_THREADS": "x" + TITLE}, "Unset or correct OMP_NUM_THREADS"),
    ):
        name = ", ".join(f"{key}={value[:12]}" for key, value in values.items())
        yield Attack(f"predict with {name!r}", _of_run(*PREDICT), says, environment=values)
    for values in ({"COLUMNS": "-5"}, {"COLUMNS": "9" * 20}, {"COLUMNS": "1"}, {"TERM": TITLE}):
        name = ", ".join(f"{key}={value[:12]}" for key, value in values.items())
        yield Attack(f"predict with {name!r}", _of_run(*PREDICT), "5 rows", 0, environment=values)
