"""A stranger's run folder: recipes that would run code, links and names that leave the folder, pipes, broken files."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.hostile.attack import MARK, PAYLOAD, TITLE, Attack, Payload, Place

VERBS: dict[str, tuple[str, ...]] = {
    "evaluate": ("evaluate", "stranger", "--processes", "1"),
    "export": ("export", "stranger", "--output", "out"),
    "report": ("report", "stranger"),
    "verify": ("verify", "stranger/recipe.yaml"),
    "train": ("train", "stranger/recipe.yaml", "--run-dir", "new"),
    "inspect": ("inspect", "stranger/recipe.yaml"),
    "predict": ("predict", "stranger", "--data", "test.csv", "--output", "answers.jsonl", "--processes", "1"),
    "chat": ("chat", "stranger"),
    "serve": ("serve", "stranger", "--port", "0"),
}
CODE = f"""{PAYLOAD}
from transformers import BertConfig, BertForSequenceClassification

class Config(BertConfig):
    pass

class Model(BertForSequenceClassification):
    config_class = Config
"""
AUTO = {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"}


def _own_code(place: Place, *, asked: bool = True) -> Path:
    """A run whose model brings code of its own. asked: the recipe of the run wants it to run."""
    place.data()
    model = place.model(auto_map=AUTO)
    (model / "evil.py").write_text(CODE)

    def change(tree: dict[str, Any]) -> None:
        tree["model"] = {"source": str(model), "init": "pretrained"} | ({"trust_remote_code": True} if asked else {})

    run = place.run(change)
    for folder in (run / "artifacts" / "model", run / "artifacts" / "processor"):
        folder.mkdir(exist_ok=True)
        (folder / "evil.py").write_text(CODE)
        for name in ("config.json", "tokenizer_config.json"):
            if (file := folder / name).is_file():
                auto = {**AUTO, "AutoTokenizer": ["evil.Slow", "evil.Fast"]}
                file.write_text(json.dumps({**json.loads(file.read_text()), "auto_map": auto}))
    return run


def _trusting(verb: str, *more: str, asked: bool = True) -> Callable[[Place], Sequence[str]]:
    def make(place: Place) -> Sequence[str]:
        _own_code(place, asked=asked)
        return (*VERBS[verb], *more)

    return make


def _controlled(verb: str, *, padded: bool = True, **changes: Any) -> Callable[[Place], Sequence[str]]:
    """Code in the model folder alone: what the run folder keeps of it is as a training here wrote it. changes: of `model:`.

    padded: with padded batches, as a training with such code would have had.
    """

    def make(place: Place) -> Sequence[str]:
        place.data()
        model = place.model(auto_map=AUTO)
        (model / "evil.py").write_text(CODE)
        run = place.run(lambda tree: tree["model"].update(source=str(model), trust_remote_code=True, **changes))
        for file, part in ((run / "plan.json", "training"), (run / "artifacts" / "artifacts.json", "settings")):
            tree = json.loads(file.read_text())
            if padded:
                tree[part].update(packing="none", capacity=0)
            file.write_text(json.dumps(tree))
        return (*VERBS[verb], "--trust-remote-code")

    return make


def _link_out(name: str) -> Callable[[Place], Path]:
    """The thing of this name is a link to a copy of it outside."""

    def change(place: Place) -> Path:
        place.data()
        run = place.run()
        inner, outside = run / name, place.folder / "outside" / name
        outside.parent.mkdir(parents=True, exist_ok=True)
        if inner.exists():
            shutil.move(inner, outside)
        elif "." in inner.name:
            outside.touch()
        else:
            outside.mkdir()
        inner.symlink_to(outside)
        (place.folder / "held").write_text(_held(outside))
        return run

    return change


def _held(folder: Path) -> str:
    files = [path for path in [folder, *folder.rglob("*")] if path.exists()]
    return "\n".join(sorted(f"{path} {path.stat().st_mtime_ns}" for path in files))


def _after(change: Callable[[Place], object], verb: str) -> Callable[[Place], Sequence[str]]:
    def make(place: Place) -> Sequence[str]:
        change(place)
        return VERBS[verb]

    return make


def _write(name: str, content: str | bytes) -> Callable[[Place], object]:
    def change(place: Place) -> None:
        place.data()
        place.run()
        path = place.folder / "stranger" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def _pipe(name: str) -> Callable[[Place], object]:
    def change(place: Place) -> None:
        path = place.run() / name
        path.unlink(missing_ok=True)
        os.mkfifo(path)

    return change


def _manifest(
    edit: Callable[[dict[str, Any]], None], before: Callable[[Path], object] = lambda run: None
) -> Callable[[Place], object]:
    """A changed manifest of the best checkpoint, with a digest that fits. before: is done to the run first."""

    def change(place: Place) -> None:
        from finetune.training.checkpoint_manifest import digest_of

        run = place.run()
        before(run)
        checkpoints = run / "checkpoints"
        file = checkpoints / (checkpoints / "best").read_text().strip() / "manifest.json"
        tree = json.loads(file.read_text())
        tree.pop("digest")
        edit(tree)
        file.write_text(json.dumps({**tree, "digest": digest_of(tree)}))

    return change


def _artifacts(edit: Callable[[dict[str, Any]], None]) -> Callable[[Place], object]:
    def change(place: Place) -> None:
        file = place.run() / "artifacts" / "artifacts.json"
        tree = json.loads(file.read_text())
        edit(tree)
        file.write_text(json.dumps(tree))

    return change


def _untouched(name: str) -> Callable[[Path], None]:
    def check(folder: Path) -> None:
        assert _held(folder / "outside" / name) == (folder / "held").read_text(), "written outside"

    return check


def attacks() -> Iterator[Attack]:
    yield from _of_code()
    yield from _of_links()
    yield from _of_names()
    yield from _of_files()


def _of_code() -> Iterator[Attack]:
    for verb in VERBS:
        if verb != "report":  # reads no recipe
            yield Attack(
                f"trust_remote_code asked by the folder: {verb}", _trusting(verb), "--trust-remote-code", seconds=60
            )
    yield Attack(
        "code in the folder of a recipe that does not ask for it", _trusting("evaluate", asked=False), '"loss"', 0, 60
    )
    yield Attack(
        "trust_remote_code by --set=false",
        _trusting("evaluate", "--set", "model.trust_remote_code=false"),
        '"loss"',
        code=0,
        seconds=60,
    )
    trusted = _controlled("predict")
    yield Attack("trusted on the command line", trusted, "answers.jsonl", 0, 90, executed=True)
    own = _controlled("evaluate", padded=False)
    yield Attack("code that may read any token", own, "not known which token the classifier", seconds=90, executed=True)
    other = _controlled("predict", init="pretrained", config={})
    yield Attack("weights of other shapes than the model's", other, "in the shape", seconds=90, executed=True)


def _of_links() -> Iterator[Attack]:
    for name, verb in (
        ("logs", "evaluate"),
        ("logs", "predict"),
        ("evaluations", "evaluate"),
        ("artifacts", "export"),
        ("artifacts", "chat"),
        ("checkpoints", "evaluate"),
        ("checkpoints", "predict"),
        ("recipe.yaml", "evaluate"),
        ("plan.json", "export"),
        ("run.json", "export"),
        ("tables", "report"),
        ("predictions", "report"),
        ("report.html", "report"),
    ):
        yield Attack(
            f"{name} is a link that leaves: {verb}", _after(_link_out(name), verb), "link", check=_untouched(name)
        )
    yield Attack("a link in a circle", lambda place: (_circle(place), VERBS["evaluate"])[1], "link")
    for name in ("recipe.yaml", "metrics.jsonl", "artifacts/artifacts.json"):
        yield Attack(f"{name} is a pipe", _after(_pipe(name), "export"), "neither a file nor a folder")


def _of_names() -> Iterator[Attack]:
    for label, verb in (
        ("../../outside", "export"),
        ("/etc", "predict"),
        ("step-1/../../../outside", "export"),
        ("\x00", "export"),
        ("x" * 5000, "export"),
        (TITLE, "export"),
    ):
        yield Attack(
            f"best names {label[:20]!r}: {verb}", _after(_write("checkpoints/best", label), verb), "does not name"
        )
    for label in ("../../stranger/checkpoints", "/"):
        yield Attack(
            f"--checkpoint {label}",
            lambda place, label=label: (place.run(), (*VERBS["export"], "--checkpoint", label))[1],
            "no checkpoint",
        )
    for name in ("../../../outside.safetensors", "/etc/passwd", "a/../../b", "", "evil\x1b[2J.safetensors"):
        edit = lambda tree, name=name: tree["files"].update({name: [1, "0" * 64]})  # noqa: E731
        yield Attack(f"manifest names {name!r}", _after(_manifest(edit), "export"), "not of this folder")
    shapes = lambda tree: tree["shapes"].update({key: [10**9, 10**9] for key in tree["shapes"]})  # noqa: E731
    yield Attack("manifest with shapes of 10^18", _after(_manifest(shapes), "export"), "shape|checkpoint")
    pickle = lambda tree: tree["files"].update({"evil.bin": [1, "0" * 64]})  # noqa: E731
    yield Attack("manifest names a pickle", _after(_manifest(pickle), "export"), "evil.bin")
    for name in ("../..", "/etc"):
        edit = lambda tree, name=name: tree.update(processor=name)  # noqa: E731
        yield Attack(f"artifacts with processor {name}", _after(_artifacts(edit), "export"), "artifacts cannot be read")


def _of_files() -> Iterator[Attack]:
    for name, texts in (
        ("run.json", ("[" * 100_000, '"' + TITLE)),
        ("plan.json", ("1" * 6000, "[]")),
        ("artifacts/artifacts.json", ("[" * 100_000, "\xff", '"' + TITLE)),
    ):
        for text in texts:
            content = text.encode("latin-1")
            yield Attack(f"{name}: {text[:8]!r}", _after(_write(name, content), "export"), name.rpartition("/")[2])
    nested = "[" * 100_000 + "\n"
    yield Attack("metrics.jsonl nested", _after(_write("metrics.jsonl", nested), "report"), "metrics.jsonl|report", 0)
    table = "tables/confusion_matrix-step-00000006.json"
    yield Attack("a table nested", _after(_write(table, nested), "report"), "report", 0)
    yield Attack("markup in what the report shows", _after(_markup, "report"), "report", code=0, check=_no_markup)
    yield Attack("a pickle in place of weights", _after(_pickled, "export"), "digest differs")
    yield Attack(
        "a pickle in place of weights, with a digest that fits", _after(_pickled_whole, "export"), "state-00000"
    )
    yield Attack(
        "a read-only run folder", _after(_read_only, "evaluate"), "[Pp]ermission denied", seconds=60, bound=True
    )


def _circle(place: Place) -> None:
    run = place.run()
    shutil.rmtree(run / "logs")
    (run / "logs").symlink_to(run / "logs")


def _pickled(place: Place) -> None:
    _pickle_weights(place.run())


def _pickle_weights(run: Path) -> dict[str, tuple[int, str]]:
    """Size and digest of the pickles, by the names of the files whose place they took."""
    checkpoints = run / "checkpoints"
    folder = checkpoints / (checkpoints / "best").read_text().strip()
    found = {}
    for file in folder.glob("*.safetensors"):
        content = pickle.dumps(Payload()).ljust(file.stat().st_size, b"\0")
        file.write_bytes(content)
        found[file.name] = (len(content), hashlib.sha256(content).hexdigest())
    return found


def _pickled_whole(place: Place) -> None:
    names: dict[str, tuple[int, str]] = {}
    _manifest(lambda tree: tree["files"].update(names), before=lambda run: names.update(_pickle_weights(run)))(place)


def _read_only(place: Place) -> None:
    place.data()
    run = place.run()
    for path in [run, *run.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)


MARKUP = f"<script>x</script><img src=x onerror=alert(1)>{TITLE}"


def _markup(place: Place) -> None:
    run = place.run()
    tree = json.loads((run / "run.json").read_text())
    tree.update(name=MARKUP, id=MARKUP, task=MARKUP, facts={MARKUP: MARKUP, "model": MARKUP}, versions={MARKUP: MARKUP})
    tree["machine"] = {"host": MARKUP, "processor": MARKUP, "gpus": [MARKUP]}
    (run / "run.json").write_text(json.dumps(tree))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"split": MARKUP, "step": 7, MARKUP: 1.0, "time": 0, "epoch": 1.0}) + "\n")
        file.write(json.dumps({"split": "validation", "step": 7, MARKUP: 1.0, "time": 0, "epoch": 1.0}) + "\n")
    table = {"columns": [MARKUP, "b"], "rows": [[MARKUP, 1]]}
    (run / "tables" / "samples-step-00000006.json").write_text(json.dumps(table))
    (run / "tables" / "other-step-00000006.json").write_text(json.dumps(table))


def _no_markup(folder: Path) -> None:
    page = (folder / "stranger" / "report.html").read_text(errors="replace")
    assert "<script>x" not in page and "<img src=x" not in page and "\x1b" not in page, "markup in the page"
    assert "&lt;script&gt;x" in page, "what was to be escaped is not on the page"
    assert not (folder / MARK).exists()
