"""A stranger's run folder: recipes that would run code, links and names that leave the folder, pipes, broken files."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.hostile.attack import MARK, PAYLOAD, TITLE, Attack, Payload, Place, put

VERBS: dict[str, tuple[str, ...]] = {
    "evaluate": ("evaluate", "stranger", "--processes", "1"),
    "export": ("export", "stranger", "--output", "out"),
    "report": ("report", "stranger"),
    "verify": ("verify", "stranger/recipe.yaml"),
    "train": ("train", "stranger/recipe.yaml", "--run-dir", "new"),
    "inspect": ("inspect", "stranger/recipe.yaml"),
}
TRUST = put("model", "trust_remote_code", value=True)


def _own_code(place: Place) -> Path:
    """A run whose model brings code of its own."""
    run, model = place.run(TRUST), place.model(auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"})
    (model / "evil.py").write_text(PAYLOAD)
    for folder in (run / "artifacts" / "model", run / "artifacts" / "processor"):
        folder.mkdir(exist_ok=True)
        (folder / "evil.py").write_text(PAYLOAD)
        for name in ("config.json", "tokenizer_config.json"):
            if (file := folder / name).is_file():
                auto = {"AutoConfig": "evil.Config", "AutoTokenizer": ["evil.Slow", "evil.Fast"]}
                file.write_text(json.dumps({**json.loads(file.read_text()), "auto_map": auto}))
    put("model", "source", value=str(model))
    return run


def _trusting(verb: str) -> Callable[[Place], Sequence[str]]:
    def make(place: Place) -> Sequence[str]:
        _own_code(place)
        return VERBS[verb]

    return make


def _link_out(name: str) -> Callable[[Place], Path]:
    """The thing of this name is a link to a copy of it outside."""

    def change(place: Place) -> Path:
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
        held = sorted(f"{path} {path.stat().st_mtime_ns}" for path in [outside, *outside.rglob("*")] if path.exists())
        (place.folder / "held").write_text("\n".join(held))
        return run

    return change


def _after(change: Callable[[Place], object], verb: str) -> Callable[[Place], Sequence[str]]:
    def make(place: Place) -> Sequence[str]:
        change(place)
        return VERBS[verb]

    return make


def _write(name: str, content: str | bytes) -> Callable[[Place], object]:
    def change(place: Place) -> None:
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


def _manifest(edit: Callable[[dict], None]) -> Callable[[Place], object]:  # type: ignore[type-arg]
    """A changed manifest of the best checkpoint, with a digest that fits."""

    def change(place: Place) -> None:
        from finetune.training.checkpoint_reader import _digest_of

        checkpoints = place.run() / "checkpoints"
        file = checkpoints / (checkpoints / "best").read_text().strip() / "manifest.json"
        tree = json.loads(file.read_text())
        tree.pop("digest")
        edit(tree)
        file.write_text(json.dumps({**tree, "digest": _digest_of(tree)}))

    return change


def _artifacts(edit: Callable[[dict], None]) -> Callable[[Place], object]:  # type: ignore[type-arg]
    def change(place: Place) -> None:
        file = place.run() / "artifacts" / "artifacts.json"
        tree = json.loads(file.read_text())
        edit(tree)
        file.write_text(json.dumps(tree))

    return change


def _untouched(name: str) -> Callable[[Path], None]:
    def check(folder: Path) -> None:
        outside = folder / "outside" / name
        held = sorted(f"{path} {path.stat().st_mtime_ns}" for path in [outside, *outside.rglob("*")] if path.exists())
        assert "\n".join(held) == (folder / "held").read_text(), "written outside"

    return check


def attacks() -> Iterator[Attack]:
    for verb in ("evaluate", "export", "verify", "train", "inspect"):
        yield Attack(f"trust_remote_code asked by the folder: {verb}", _trusting(verb), "--trust-remote-code")
    yield Attack(
        "trust_remote_code by --set=false is a recipe without it",
        lambda place: (_own_code(place), ("evaluate", "stranger", "--set", "model.trust_remote_code=false"))[1],
        codes=(0, 1, 2),
        seconds=60,
    )
    for name in (
        "logs",
        "evaluations",
        "artifacts",
        "checkpoints",
        "recipe.yaml",
        "plan.json",
        "tables",
        "predictions",
    ):
        for verb in ("evaluate", "report"):
            yield Attack(
                f"{name} is a link that leaves: {verb}", _after(_link_out(name), verb), "link", check=_untouched(name)
            )
    yield Attack("report.html is a link that leaves", _after(_link_out("report.html"), "report"), "link")
    yield Attack("run.json is a link that leaves", _after(_link_out("run.json"), "export"), "link")
    yield Attack("a link in a circle", lambda place: (_circle(place), VERBS["evaluate"])[1], "link")
    for name in ("recipe.yaml", "plan.json", "metrics.jsonl", "artifacts/artifacts.json"):
        yield Attack(f"{name} is a pipe", _after(_pipe(name), "export"), "neither a file nor a folder")
    for label in ("../../outside", "/etc", "step-1/../../../outside", "..", "\x00", "x" * 5000, TITLE):
        yield Attack(f"best names {label[:20]!r}", _after(_write("checkpoints/best", label), "export"), "does not name")
    for label in ("../../stranger/checkpoints", "/", ".."):
        yield Attack(
            f"--checkpoint {label}",
            lambda place, label=label: (place.run(), (*VERBS["export"], "--checkpoint", label))[1],
            "no checkpoint",
        )
    for name in ("../../../outside.safetensors", "/etc/passwd", "a/../../b", "", ".", "evil\x1b[2J.safetensors"):
        edit = lambda tree, name=name: tree["files"].update({name: [1, "0" * 64]})  # noqa: E731
        yield Attack(f"manifest names {name!r}", _after(_manifest(edit), "export"), "not of this folder")
    shapes = lambda tree: tree["shapes"].update({key: [10**9, 10**9] for key in tree["shapes"]})  # noqa: E731
    yield Attack("manifest with shapes of 10^18", _after(_manifest(shapes), "export"), codes=(1, 2))
    pickle = lambda tree: tree["files"].update({"evil.bin": [1, "0" * 64]})  # noqa: E731
    yield Attack("manifest names a pickle", _after(_manifest(pickle), "export"), "evil.bin")
    for name in ("../..", "/etc", "model/../../.."):
        edit = lambda tree, name=name: tree.update(processor=name)  # noqa: E731
        yield Attack(f"artifacts with processor {name}", _after(_artifacts(edit), "export"), "artifacts cannot be read")
    for name in ("run.json", "plan.json", "artifacts/artifacts.json"):
        for text, what in (
            ("[" * 100_000, "nested"),
            ("1" * 6000, "long integer"),
            ("\xff", "no UTF-8"),
            ("[]", "list"),
            ('"' + TITLE, "escape codes"),
        ):
            yield Attack(f"{name}: {what}", _after(_write(name, text.encode("latin-1")), "export"))
    for name in ("metrics.jsonl", "tables/confusion_matrix-step-00000006.json"):
        yield Attack(f"report with {name} nested", _after(_write(name, "[" * 100_000 + "\n"), "report"), codes=(0, 2))
    yield Attack(
        "report: markup and codes in run.json and metrics",
        lambda place: (_markup(place), VERBS["report"])[1],
        codes=(0,),
        check=_no_markup,
    )
    yield Attack("a pickle in place of weights", _after(_pickled, "export"))
    yield Attack("a read-only run folder under evaluate", _after(_read_only, "evaluate"), codes=(0, 1, 2), seconds=60)


def _circle(place: Place) -> None:
    run = place.run()
    shutil.rmtree(run / "logs")
    (run / "logs").symlink_to(run / "logs")


def _pickled(place: Place) -> None:
    checkpoints = place.run() / "checkpoints"
    folder = checkpoints / (checkpoints / "best").read_text().strip()
    payload = pickle.dumps(Payload())
    for file in folder.glob("*.safetensors"):
        file.write_bytes(payload.ljust(file.stat().st_size, b"\0"))


def _read_only(place: Place) -> None:
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
    assert not (folder / MARK).exists()
