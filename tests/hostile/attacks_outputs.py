"""The folder beside the output of a prediction, which the same command goes on from: files that were cut, exchanged, edited,
or that lead elsewhere. What is damaged is answered again, or refused; a row is never lost, and no other file is touched.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.hostile.attack import TITLE, Attack, Place

PREDICT = ("predict", "stranger", "--data", "test.csv", "--processes", "1", "--output")
WINDOW = "window-00000000"
SEAL = "seal"
Change = Callable[[Path, Path], object]  # of the folder beside the output, and the output


def _begun(change: Change, *, output: str = "answers.jsonl") -> Callable[[Place], Sequence[str]]:
    """A prediction whose two chunks are answered, and none of whose rows is in the output."""

    def make(place: Place) -> Sequence[str]:
        place.data()
        place.run(sealed=True)
        beside, answers = place.folder / f"{output}.parts", place.folder / output
        shutil.copytree(place.given.begun / f"begun{answers.suffix}.parts", beside)
        shutil.copy(place.given.begun / f"begun{answers.suffix}", answers)
        (place.folder / "kept").mkdir()
        (place.folder / "kept" / "mine.txt").write_text("mine")
        change(beside, answers)
        return (*PREDICT, output)

    return make


def _ended(change: Change, *, output: str = "answers.jsonl") -> Callable[[Place], Sequence[str]]:
    """A prediction that has ended, and is asked again."""

    def make(place: Place) -> Sequence[str]:
        place.data()
        place.run(sealed=True)
        beside, answers = place.folder / f"{output}.parts", place.folder / output
        shutil.copytree(place.given.begun / f"ended{answers.suffix}.parts", beside)
        shutil.copy(place.given.begun / f"ended{answers.suffix}", answers)
        change(beside, answers)
        return (*PREDICT, output)

    return make


def _whole(folder: Path) -> None:
    rows = [json.loads(line)["row"] for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert rows == list(range(len(rows))) and len(rows) == 5, f"rows are lost: {rows}"
    expected = (folder / "whole.jsonl").read_text() if (folder / "whole.jsonl").exists() else ""
    assert (folder / "answers.jsonl").read_text() == expected, "the answers are not those of an undisturbed start"


def _with_whole(make: Callable[[Place], Sequence[str]]) -> Callable[[Place], Sequence[str]]:
    def made(place: Place) -> Sequence[str]:
        shutil.copy(place.given.begun / "ended.jsonl", place.folder / "whole.jsonl")
        return make(place)

    return made


def _mine(folder: Path) -> None:
    assert [path.name for path in (folder / "kept").iterdir()] == ["mine.txt"], "another folder was written or removed"
    assert (folder / "kept" / "mine.txt").read_text() == "mine"


def _edit(name: str, edit: Callable[[dict[str, Any]], object], *, sealed: bool = False) -> Change:
    """Other values in a file; sealed: with a digest that fits."""

    def change(beside: Path, output: Path) -> None:
        from finetune.inference.prediction.parts import _seal

        tree = json.loads((beside / name).read_text())
        tree.pop(SEAL)
        edit(tree)
        seal = _seal(tree) if sealed else "0"
        (beside / name).write_text(json.dumps({**tree, SEAL: seal}))

    return change


def _write(name: str, content: str | bytes) -> Change:
    def change(beside: Path, output: Path) -> None:
        path = beside / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))

    return change


def _replace(name: str, make: Callable[[Path], object]) -> Change:
    """Something else in place of a file or folder."""

    def change(beside: Path, output: Path) -> None:
        path = output if name == "output" else beside / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        path.parent.mkdir(exist_ok=True)
        make(path)

    return change


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _link(target: str) -> Callable[[Path], object]:
    return lambda path: path.symlink_to(target)


def _forge(edit: Callable[[list[Any]], object]) -> Change:
    """Other lines in the first file of answers, with digests that fit."""

    def change(beside: Path, output: Path) -> None:
        path = beside / WINDOW / "00000.answers"
        head, *lines = path.read_text().splitlines()
        values = [json.loads(line) for line in lines]
        edit(values)
        body = "".join(one if isinstance(one, str) else json.dumps(one) + "\n" for one in values).encode()
        content = hashlib.blake2b(body, digest_size=16).hexdigest()
        path.write_bytes(json.dumps({**json.loads(head), "content": content}).encode() + b"\n" + body)

    return change


def _exchange(beside: Path, output: Path) -> None:
    one, other = (beside / WINDOW / f"0000{number}.answers" for number in (0, 1))
    first = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(first)


def _flip(beside: Path, output: Path) -> None:
    path = beside / WINDOW / "00000.answers"
    text = path.read_text()
    assert text.count('"record": {') > 1
    path.write_text(text.replace("0.", "1.", 1))


def _cut(share: float) -> Change:
    def change(beside: Path, output: Path) -> None:
        path = beside / WINDOW / "00000.answers"
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    return change


def attacks() -> Iterator[Attack]:
    yield from _of_answers()
    yield from _of_links()
    yield from _of_states()
    yield from _of_ends()


def _of_answers() -> Iterator[Attack]:
    for what, change, says in (
        ("as they were", lambda beside, output: None, "resuming: 5 rows answered"),
        ("exchanged", _exchange, "rows answered"),
        ("cut in half", _cut(0.5), "1 chunk of an earlier start had damaged answers"),
        ("cut to nothing", _cut(0), "1 chunk of an earlier start had damaged answers"),
        ("with a digit flipped", _flip, "1 chunk of an earlier start had damaged answers"),
        ("nested", _write(f"{WINDOW}/00000.answers", "[" * 100_000), "1 chunk of an earlier start had damaged answers"),
        ("a folder", _replace(f"{WINDOW}/00000.answers", Path.mkdir), "cannot|directory"),
    ):
        code = 0 if what != "a folder" else 1
        check = _whole if not code else lambda folder: None
        yield Attack(f"answers {what}", _with_whole(_begun(change)), says, code, 60, check=check)
    for what, edit in (
        ("a row that is text", lambda lines: lines[0].update(row="x")),
        ("a row twice", lambda lines: lines.append(lines[0])),
        ("a row of another window", lambda lines: lines[0].update(row=10**9)),
        ("a line that is a list", lambda lines: lines.insert(0, [])),
        ("a record that is a number", lambda lines: lines[0].update(record=5)),
        ("an error that is text", lambda lines: lines[0].update(record={"row": 0, "error": "x"})),
        ("a piece without a number", lambda lines: lines[0].update(piece={})),
        ("a line nested", lambda lines: lines.append("[" * 100_000 + "\n")),
        ("a line fewer", lambda lines: lines.pop()),
    ):
        says = "answers of a window do not fit its rows"
        yield Attack(f"answers forged: {what}", _begun(_forge(edit)), says, 1, 60)
    for name, content in (("00000.lost", "x"), ("00000.failed", ""), ("00000.died", "")):
        change = _write(f"{WINDOW}/{name}", content)
        yield Attack(f"{name} is {content!r}", _with_whole(_begun(change)), "rows answered", 0, 60, check=_whole)
    at = _write("at-00000", '{"chunks": [["x", {}]], "example": [], "answered": "x"}')
    yield Attack("a place of a rank that is odd", _with_whole(_begun(at)), "rows answered", 0, 60, check=_whole)


def _of_links() -> Iterator[Attack]:
    for name in (
        ".",
        "logs",
        "rows",
        WINDOW,
        f"{WINDOW}/00000.answers",
        "state.json",
        "manifest.json",
        "lock",
        "at-00000",
    ):
        change = _replace(name, _link("../kept" if name == "." else "../../kept"))
        if name == ".":

            def change(beside: Path, output: Path) -> None:
                shutil.rmtree(beside)
                beside.symlink_to("kept")

        yield Attack(f"beside the output, {name} is a link", _begun(change), "link", check=_mine)
    rows = _replace("rows", _link("../kept"))
    yield Attack("the windows of a table are a link", _begun(rows, output="answers.parquet"), "link", check=_mine)
    for name in ("manifest.json", "state.json", "lock", f"{WINDOW}/00000.answers", "scored.jsonl"):
        yield Attack(
            f"beside the output, {name} is a pipe", _begun(_replace(name, _pipe)), "neither a file nor a folder"
        )
    for what, make in (("a pipe", _pipe), ("a folder", Path.mkdir), ("a link to a pipe", _link("pipe"))):

        def change(beside: Path, output: Path, make: Callable[[Path], object] = make) -> None:
            os.mkfifo(output.parent / "pipe")
            output.unlink()
            make(output)

        yield Attack(f"the output is {what}", _begun(change), "is not a file")


def _of_states() -> Iterator[Attack]:
    for name in ("manifest.json", "state.json"):
        for text in ("[" * 100_000, "[]", "null", "\x00", "\xff", '{"a": ' + "9" * 5000 + "}", '"' + TITLE):
            change = _write(name, text.encode("latin-1"))
            yield Attack(f"{name} is {text[:8]!r}", _begun(change), f"{name}: cannot be read")
    for key, value in (("identity", []), ("digest", "x"), ("options", {}), ("budget", 1), ("window_rows", 1)):
        edited = _edit("manifest.json", lambda tree, key=key, value=value: tree.update({key: value}))
        yield Attack(f"manifest edited: {key}", _begun(edited), "it was edited")
    for key, value in (("model", TITLE), ("sources", {"a": TITLE}), ("options", {TITLE: TITLE}), ("identity", 5)):
        forged = _edit(
            "manifest.json", lambda t, key=key, value=value: t.update({key: value, "digest": "x"}), sealed=True
        )
        yield Attack(f"manifest forged: {key}", _begun(forged), "begun by another command")
    for key, value in (("rows", 5), ("windows", 1), ("position", None), ("finished", True), ("errors", {})):
        edited = _edit("state.json", lambda tree, key=key, value=value: tree.update({key: value}))
        yield Attack(f"state edited: {key}", _ended(edited), "it was edited")
    odd = ({"size": -1, "last": 0, "digest": ""}, {"size": 10**30, "last": 5, "digest": ""}, "x", [5], 1.5, {})
    for position in odd:
        forged = _edit(
            "state.json", lambda tree, position=position: tree.update(position=position, finished=False), sealed=True
        )
        yield Attack(f"state forged: position {str(position)[:20]}", _ended(forged), "position is|cannot be read|bytes")
    for key, value in (("finished", "no"), ("rows", -1), ("windows", 1.5), ("errors", {"a": "x"}), ("seconds", "x")):
        forged = _edit("state.json", lambda tree, key=key, value=value: tree.update({key: value}), sealed=True)
        yield Attack(f"state forged: {key} {value!r}", _ended(forged), "cannot be read")


def _of_ends() -> Iterator[Attack]:
    same = lambda beside, output: None  # noqa: E731
    for suffix in (".jsonl", ".csv", ".parquet"):
        name = f"answers{suffix}"
        yield Attack(f"an end as it was: {suffix}", _ended(same, output=name), "5 rows are answered already", 0)
        for what, change in (
            ("cut", lambda beside, output: output.write_bytes(output.read_bytes()[: output.stat().st_size // 2])),
            ("empty", lambda beside, output: output.write_bytes(b"")),
            ("longer", lambda beside, output: output.write_bytes(output.read_bytes() + b"x,y\n")),
            ("another file", lambda beside, output: output.write_bytes(b"PAR1" + b"\xff" * 5000)),
        ):
            yield Attack(
                f"an end whose output is {what}: {suffix}", _ended(change, output=name), "Bring it back as it was"
            )
