"""Proves the rules of the architecture on every file: imports point down only, heavy libraries stay where they belong."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from finetune.tasks import CARDS

PACKAGE = Path(__file__).resolve().parents[2] / "finetune"

FLOORS = {
    **dict.fromkeys(("errors", "units", "events", "__init__"), 0),  # every package may import these
    **dict.fromkeys(("recipe", "ending"), 1),
    **dict.fromkeys(("data", "models", "metrics", "terminal", "html_templates"), 2),
    "planning": 3,
    **dict.fromkeys(("tasks", "distributed"), 4),
    **dict.fromkeys(("training", "inference", "tracking", "inspection"), 5),
    "app": 6,
    "cli": 7,
    "__main__": 8,
}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}
LIGHT_PACKAGES = {"recipe", "errors", "units", "events", "terminal", "cli", "__main__", "__init__"}
HEAVY = {"torch", "transformers", "accelerate", "deepspeed", "datasets", "evaluate", "peft", "wandb"}
RANKS = ("deepspeed", "torch.distributed")


@dataclass(frozen=True)
class Import:
    """One import statement's target. typing_only: under TYPE_CHECKING. late: inside a function."""

    file: Path
    line: int
    module: str
    typing_only: bool
    late: bool

    def __str__(self) -> str:
        return f"{self.file.relative_to(PACKAGE.parent)}:{self.line} imports {self.module}"


FILES = sorted(path for path in PACKAGE.rglob("*.py") if "shipped" not in path.parts)
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def imports_of(path: Path, tree: ast.AST, typing_only: bool = False, late: bool = False) -> Iterator[Import]:
    """Every import of a file, function-level and TYPE_CHECKING ones too; `from a import b` counts as a.b."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(path, node.lineno, alias.name, typing_only, late)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            for alias in node.names:
                yield Import(path, node.lineno, f"{node.module}.{alias.name}", typing_only, late)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for part in node.body:
                yield from imports_of(path, ast.Module([part], []), True, late)
            for part in node.orelse:
                yield from imports_of(path, ast.Module([part], []), typing_only, late)
        else:
            inside = late or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from imports_of(path, node, typing_only, inside)


def package_of(path: Path) -> str:
    """finetune/data/order/schedule.py -> "data"; finetune/cli/train.py -> "cli"."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def is_under(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


IMPORTS = [found for path in FILES for found in imports_of(path, TREES[path])]

DOORS = [found for found in IMPORTS if found.file == PACKAGE / "__init__.py" and (found.late or found.typing_only)]
"""finetune.load: the package itself leads to app/, when it is called."""


def test_the_walk_finds_the_package() -> None:
    assert len(FILES) > 30
    assert len(IMPORTS) > 200
    assert {found.module for found in DOORS if found.late} == {"finetune.app.loaded.load"}
    assert {package_of(path) for path in FILES} <= set(FLOORS), "a package without a floor: give it one in FLOORS"


def test_imports_point_down_only() -> None:
    seen, faults = 0, []
    for found in IMPORTS:
        if not is_under(found.module, "finetune") or found in DOORS:
            continue
        parts = found.module.split(".")
        target = parts[1] if len(parts) > 1 else "__init__"
        if target not in FLOORS:
            target = "__init__"  # a name of the package itself, such as __version__
        package = package_of(found.file)
        seen += 1
        if target != package and FLOORS[target] >= FLOORS[package]:
            faults.append(f"{found} (floor {FLOORS[package]} -> {FLOORS[target]})")
    assert seen > 60
    assert not faults, "\n".join(faults)


DATA_FOLDERS = {"order": set(), "formats": set(), "prepare": set(), "sources": {"formats", "prepare"}}


def test_folders_of_data_do_not_import_in_circles() -> None:
    """Each folder of data/ imports itself, the files of data/, and the folders listed; those files import no folder."""
    counts, faults = dict.fromkeys((*DATA_FOLDERS, ""), 0), []
    for found in IMPORTS:
        if package_of(found.file) != "data" or not is_under(found.module, "finetune.data"):
            continue
        folder, target = (parts[0] if parts[0] in DATA_FOLDERS else "" for parts in _inside_data(found))
        counts[folder] += 1
        if target and target != folder and target not in DATA_FOLDERS.get(folder, set()):
            faults.append(str(found))
    assert all(counts.values()), counts
    assert not faults, "\n".join(faults)


def _inside_data(found: Import) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Paths below data/ of the importing file and of the imported module."""
    return found.file.relative_to(PACKAGE / "data").parts, tuple(found.module.split(".")[2:])


def test_recipes_and_the_command_line_import_no_heavy_library() -> None:
    checked = [found for found in IMPORTS if package_of(found.file) in LIGHT_PACKAGES]
    assert len(checked) > 50
    assert not [str(found) for found in checked if found.module.split(".")[0] in HEAVY]


def test_importing_the_cards_of_tasks_reaches_no_heavy_library() -> None:
    """A recipe is checked against the tasks' cards in under half a second, so nothing that their import runs is heavy."""
    cards = sorted((PACKAGE / "tasks").glob("*/card.py"))
    assert len(cards) == len(CARDS) >= 9
    commands = sorted((PACKAGE / "cli").glob("*.py"))
    assert len(commands) > 10
    waiting, reached, faults = [PACKAGE / "tasks" / "__init__.py", *commands, *cards], set[Path](), []
    while waiting:
        path = waiting.pop()
        if path in reached:
            continue
        reached.add(path)
        for found in imports_of(path, TREES[path]):
            if found.late or found.typing_only:
                continue
            if found.module.split(".")[0] in HEAVY:
                faults.append(str(found))
            waiting += files_run_by(found.module)
    assert {path.stem for path in reached} >= {"card", "section", "errors"}, "the walk follows imports"
    assert not faults, "\n".join(faults)


def files_run_by(module: str) -> list[Path]:
    """The files of the package that importing `module`, or a name of it, runs: finetune.data.bad_rows.BadRow -> [...]."""
    parts = module.split(".")
    if parts[0] != PACKAGE.name:
        return []
    below = [PACKAGE.joinpath(*parts[1:end]) for end in range(1, len(parts) + 1)]
    return [file for path in below for file in (path / "__init__.py", path.with_suffix(".py")) if file in TREES]


def test_only_the_folder_of_a_task_names_it() -> None:
    """What others need to know about a task is on its card or in its folder: a new task changes no file but its own."""
    named, inside = [], 0
    for path in FILES:
        parts = path.relative_to(PACKAGE).parts
        own = parts[1] if parts[0] == "tasks" and parts[1] in CARDS else ""
        constants = [node for node in ast.walk(TREES[path]) if isinstance(node, ast.Constant) and node.value in CARDS]
        inside += sum(node.value == own for node in constants)
        named += [f"{path.relative_to(PACKAGE)}:{node.lineno} {node.value}" for node in constants if node.value != own]
    assert inside >= len(CARDS), "each card has the name of its folder"
    assert not named, "\n".join(named)


def test_tasks_import_at_the_top_of_a_file() -> None:
    """What a file needs is seen at its head; imports in functions are for what only few runs need."""
    late = [str(found) for found in IMPORTS if package_of(found.file) == "tasks" and found.late]
    assert len(late) < 20, "\n".join(late)


def test_verbs_and_their_ranks_do_not_import_each_other() -> None:
    """The command and its part on a rank (app/<verb>.py, app/workers/<verb>.py) meet in app/dispatch.py alone, by name."""
    app = PACKAGE / "app"
    workers = {path.stem for path in (app / "workers").glob("*.py")}
    verbs = {path.stem for path in app.glob("*.py")} & (
        workers | {"export", "report", "doctor", "recipes", "prepare", "cache"}
    ) - {"__init__"}
    assert {"train", "evaluate", "verify"} < verbs
    names = [f"finetune.app.{verb}" for verb in verbs] + [f"finetune.app.workers.{verb}" for verb in verbs & workers]
    inside = [found for found in IMPORTS if package_of(found.file) == "app" and is_under(found.module, "finetune.app")]
    assert len(inside) > 20
    assert not [str(found) for found in inside if is_under(found.module, *names)]
    workers_folder = app / "workers"
    above = [str(f) for f in inside if f.file.parent != workers_folder and is_under(f.module, "finetune.app.workers")]
    assert not above, "\n".join(above)


def test_only_distributed_knows_ranks() -> None:
    faults = [str(f) for f in IMPORTS if is_under(f.module, *RANKS) and package_of(f.file) != "distributed"]
    assert not faults, "\n".join(faults)
    assert any(is_under(found.module, *RANKS) for found in IMPORTS), "distributed/ itself imports them"


def test_nobody_reaches_torch_distributed_through_an_attribute() -> None:
    faults = []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed":
                faults.append(f"{path.relative_to(PACKAGE.parent)}:{node.lineno}")
    assert not [fault for fault in faults if not fault.startswith("finetune/distributed/")]


def test_a_file_has_a_name_and_says_what_it_is_for() -> None:
    named = [path for path in FILES if FORBIDDEN_NAMES & set(path.relative_to(PACKAGE).with_suffix("").parts)]
    assert not named, "names that say nothing"
    silent = [path for path, tree in TREES.items() if not ast.get_docstring(tree)]
    assert not [path for path in silent if TREES[path].body or path.name != "__init__.py"], "no docstring at its head"


MOST_LINES, MOST_LINES_OF_A_FUNCTION = 300, 60


def test_a_file_has_300_lines_at_most_and_a_function_60() -> None:
    files = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    functions = {
        f"{path.relative_to(PACKAGE.parent)}:{node.lineno}: {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    assert max(files.values()) > MOST_LINES / 2 and max(functions.values()) > MOST_LINES_OF_A_FUNCTION / 2
    assert not {str(path): lines for path, lines in files.items() if lines > MOST_LINES}
    assert not {name: lines for name, lines in functions.items() if lines > MOST_LINES_OF_A_FUNCTION}


def test_the_walk_sees_what_it_should(tmp_path: Path) -> None:
    source = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\ndef f():\n    from a.b import c\n"
        "class K:\n    def g(self):\n        try:\n            import d\n        except ImportError: pass\n"
    )
    found = {item.module: item for item in imports_of(tmp_path, ast.parse(source))}
    assert set(found) == {"typing.TYPE_CHECKING", "torch", "a.b.c", "d"}
    assert found["torch"].typing_only
    assert found["a.b.c"].late
    assert found["d"].late


ENGINE_WORDS = {"zero_stage", "is_deepspeed", "is_sliced"}
ENGINE_PACKAGES = ("distributed/engines", "planning")


def engine_questions(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Lines that ask which engine trains: a name of ENGINE_WORDS, or a DeepSpeed configuration compared with None."""
    for node in ast.walk(tree):
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        if name in ENGINE_WORDS:
            yield node.lineno, name
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.Is, ast.IsNot)):
            asked = ast.unparse(node.left).rpartition(".")[2]
            if asked in ("deepspeed", "deepspeed_config") and ast.unparse(node.comparators[0]) == "None":
                yield node.lineno, ast.unparse(node)


def test_nobody_but_engines_and_planning_asks_which_engine_trains() -> None:
    faults, inside = [], 0
    for path, tree in TREES.items():
        found = list(engine_questions(tree))
        if str(path.relative_to(PACKAGE)).startswith(ENGINE_PACKAGES):
            inside += len(found)
        else:
            faults += [f"{path.relative_to(PACKAGE.parent)}:{line}: {what}" for line, what in found]
    assert not faults, "\n".join(faults)
    assert inside > 3, "the walk sees what engines ask"


def test_every_engine_and_optimizer_of_a_registry_is_there() -> None:
    from finetune.recipe.engines import ENGINES
    from finetune.recipe.optimizers import OPTIMIZERS

    entries = {spec.name: spec.opener for spec in ENGINES.values()}
    entries |= {spec.name: spec.factory for spec in OPTIMIZERS.values()}
    assert len(entries) == len(ENGINES) + len(OPTIMIZERS)
    for name, target in entries.items():
        assert isinstance(target, str)
        home, _, attribute = target.partition(":")
        if not home.startswith("finetune."):
            continue
        tree = TREES[PACKAGE.parent / f"{home.replace('.', '/')}.py"]
        assert attribute in {
            node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        }, name
