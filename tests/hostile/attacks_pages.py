"""A stranger's run folder under the verbs that only look at it, and artifacts that are not those of the training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.hostile.attack import ERASE, TITLE, Attack, Place
from tests.hostile.attacks_runs import MARKUP, VERBS, _write

LOOKS: dict[str, tuple[str, ...]] = {
    "report": ("report", "stranger"),
    "compare": ("compare", "stranger", "other"),
    "page": ("compare", "stranger", "other", "--html", "page.html"),
    "runs": ("runs", "."),
    "logs": ("logs", "stranger"),
    "dashboard": ("dashboard", "stranger", "--spec", "spec.json"),
}


def _looking(verb: str, change: Callable[[Place], object]) -> Callable[[Place], Sequence[str]]:
    def make(place: Place) -> Sequence[str]:
        change(place)
        if not (place.folder / "stranger").exists():
            place.run()
        shutil.copytree(place.given.run, place.folder / "other")
        return {**VERBS, **LOOKS}[verb]

    return make


def _facts(**values: Any) -> Callable[[Place], object]:
    """Other values in run.json."""

    def change(place: Place) -> None:
        place.data()
        file = place.run() / "run.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return change


def _sealed(name: str, edit: Callable[[dict[str, Any]], object]) -> Callable[[Place], object]:
    """A file of artifacts/ edited, by somebody who does not know of its digest."""

    def change(place: Place) -> None:
        place.data()
        file = place.run(sealed=True) / "artifacts" / name
        tree = json.loads(file.read_text())
        edit(tree)
        file.write_text(json.dumps(tree))

    return change


def _exchange(tree: dict[str, Any]) -> None:
    words = tree["model"]["vocab"]
    words["film"], words["story"] = words["story"], words["film"]


def _no_markup(folder: Path) -> None:
    page = (folder / "page.html").read_text(errors="replace")
    assert "<script>x" not in page and "<img src=x" not in page and "\x1b" not in page, "markup in the page"


def attacks() -> Iterator[Attack]:
    for verb, says in (("report", "facts is not an object"), ("compare", "facts is not an object"), ("runs", "damaged"),
                       ("dashboard", "facts is not an object"), ("evaluate", "facts is not an object"),
                       ("export", "facts is not an object"), ("predict", "facts is not an object")):  # fmt: skip
        code = 0 if verb == "runs" else 2
        yield Attack(f"facts are a list: {verb}", _looking(verb, _facts(facts=[1])), says, code)
    for key, value, says in (
        ("sessions", [{"started": "x"}], r"sessions\[0\]\.started is not a number"),
        ("sessions", {"a": 1}, "sessions is not a list"),
        ("summary", {"best_step": 1.5}, "best_step is not a whole number"),
        ("machine", {"gpus": 5}, "gpus is not a list"),
        ("name", {"a": TITLE}, "name is not text"),
    ):
        yield Attack(f"{key} is {str(value)[:20]!r}: report", _looking("report", _facts(**{key: value})), says)
    big = "9" * 5000
    for text in (
        f'{{"split": "train", "step": 1, "loss": {big}}}\n',
        '{"split": "validation", "step": 1e400, "loss": 1}\n',
    ):
        yield Attack(
            f"metrics.jsonl {text[:44]!r}", _looking("report", _write("metrics.jsonl", text)), "report.html", 0
        )
    yield Attack("an id of 5,000 digits", _looking("report", _write("run.json", f'{{"id": {big}}}')), "5,000 digits")
    for name, content in (("recipe.yaml", b"\xff\xfe"), ("checkpoints/best", b"\xff\xfe"),
                          ("tables/a-step-00000006.json", b"5"),
                          ("predictions/validation-step-00000006.jsonl", b'{"a": ' + b"[" * 50_000),
                          ("artifacts/artifacts.json", b"[" * 100_000)):  # fmt: skip
        yield Attack(f"{name} is {content[:9]!r}: report", _looking("report", _write(name, content)), "report.html", 0)
    markup = _facts(name=MARKUP, id=MARKUP, versions={MARKUP: MARKUP}, machine={MARKUP: MARKUP})
    yield Attack("markup in a comparison", _looking("page", markup), "page", 0, check=_no_markup)
    yield Attack(
        "codes in a log", _looking("logs", _write("logs/rank-0.log", TITLE + ERASE + "\u202egpj\n")), "001b", 0
    )
    yield Attack("codes as a status", _looking("runs", _facts(status=TITLE)), "001b", 0)
    yield Attack("a log of another user's file", _looking("logs", _log_elsewhere), "leads out of it")
    for name, edit in (("processor/tokenizer.json", _exchange), ("artifacts.json", _reverse)):
        for verb in ("evaluate", "predict", "export"):
            yield Attack(
                f"{name} edited: {verb}", _looking(verb, _sealed(name, edit)), "not those that it was trained with"
            )
    for name, edit, says in (
        ("../plan.json", lambda tree: tree["training"].update(precision="bf16"), "the plan of the run is not the one"),
        ("model/config.json", lambda tree: tree.update(hidden_act="relu"), "configuration is not the one"),
    ):
        for verb in ("evaluate", "predict", "export"):
            yield Attack(f"{name} edited: {verb}", _looking(verb, _sealed(name, edit)), says)
    yield Attack("artifacts as they were", _looking("export", lambda place: place.run(sealed=True)), "out", 0)


def _reverse(tree: dict[str, Any]) -> None:
    tree["classes"]["names"].reverse()


def _log_elsewhere(place: Place) -> None:
    log = place.run() / "logs" / "rank-0.log"
    log.unlink()
    log.symlink_to("/etc/passwd")
