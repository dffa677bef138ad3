"""One attack: a command line over files that somebody made with bad intent, and what must happen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.e2e import tiny

GIB = 1 << 30
MARK = "PWNED"  # file that payloads make in the folder of their attack
TITLE = "\x1b]0;owned\x07"  # retitles the window
ERASE = "\x1b[2J\x1b[1;1H"  # clears the screen
PAYLOAD = f"open({MARK!r}, 'w').write('executed')\n"  # Python that an attack would have run


class Payload:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, (PAYLOAD,))


@dataclass(frozen=True)
class Given:
    """What the attacks start from. run: a run folder that this version trained. bert, llama, resnet: folders of small models.

    begun: folder with predictions of that run: `ended` with its output whole, `begun` with all chunks answered and no row
    in the output, in each format.
    """

    run: Path
    bert: Path
    llama: Path
    begun: Path
    resnet: Path


@dataclass(frozen=True)
class Place:
    """The folder of one attack, which is empty, and where its command runs."""

    folder: Path
    given: Given

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        return path

    def data(self) -> None:
        """train.csv and the rest of what the small recipe reads."""
        tiny.write_data(self.folder)

    def recipe(self, change: Callable[[dict[str, Any]], None] = lambda tree: None) -> str:
        """recipe.yaml, and its data; `change` alters its values in place."""
        self.data()
        tree = tiny.recipe()
        change(tree)
        self.write("recipe.yaml", yaml.safe_dump(tree, allow_unicode=True))
        return "recipe.yaml"

    def run(self, change: Callable[[dict[str, Any]], None] | None = None, *, sealed: bool = False) -> Path:
        """`stranger/`: a copy of the run folder; `change` alters the values of its recipe. sealed: with the digests of its
        plan and artifacts, which a stranger would change with them.
        """
        run = self.folder / "stranger"
        shutil.copytree(self.given.run, run, symlinks=True)
        if not sealed:
            file = run / "run.json"
            tree = json.loads(file.read_text())
            for name in ("artifacts", "plan", "model_config"):
                del tree[name]
            file.write_text(json.dumps(tree))
        if change is not None:
            file = run / "recipe.yaml"
            tree = yaml.safe_load(file.read_text())
            change(tree)
            file.write_text(yaml.safe_dump(tree))
        return run

    def model(self, kind: str = "bert", **config: Any) -> Path:
        """`model/`: a copy of a small model; its configuration with other values."""
        model = self.folder / "model"
        shutil.copytree(getattr(self.given, kind), model)
        if config:
            file = model / "config.json"
            file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
        return model


@dataclass(frozen=True)
class Attack:
    """make: writes its files and returns the command line. says: pattern that the output must have. code: the exit code that
    is right. memory: bytes that the largest process may take. check: what else must hold afterwards, of the folder.
    stop_after: seconds until it gets SIGTERM; 0: it does not. bound: it has no right to pass over permissions of files.
    before: is called in the process that is to be finetune, and is a function of a module.
    executed: its code must run, as its command line asks for; this shows that the others would be found out.
    """

    name: str
    make: Callable[[Place], Sequence[str]]
    says: str
    code: int = 2
    seconds: float = 45.0  # more than twice what the slowest takes on two idle cores
    memory: int = 3 * GIB
    stop_after: float = 0.0
    bound: bool = False
    executed: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    before: Callable[[], None] | None = None
    check: Callable[[Path], None] = lambda folder: None


def put(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    """Sets the value at a path of a tree."""

    def change(tree: dict[str, Any]) -> None:
        inner: Any = tree
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        inner[path[-1]] = value

    return change
