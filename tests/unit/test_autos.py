"""Every "auto" of a recipe is answered by planning/ alone: nothing else compares with it, but what is listed here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "finetune"
SCHEMA = {f"recipe/{name}.py" for name in ("data", "evaluation", "formats", "model", "parallel", "training")}

# File, or folder, and function ("" for any) -> why it may know the word.
ALLOWED = {
    ("cli/train.py", ""): "--resume is a mode of running",
    ("app/train.py", ""): "--resume",
    ("app/predict_options.py", ""): "--wandb is a mode of running",
    ("app/runs.py", "find_run"): "--resume",
    ("app/runs.py", "kept_run"): "--resume",
    ("app/supervise.py", "supervise"): "--resume",
    ("app/launch_plan.py", "plan_launch"): "parallel.processes, decided before there is a plan",
    ("app/sweeping/slots.py", "ranks_of_trial"): "parallel.processes of a trial, decided before there is a plan",
    ("app/workers/resuming.py", ""): "--resume",
    ("app/workers/verify.py", "run_variant"): "writes the recipe of a layout; planning chooses its engine",
    ("app/workers/launcher_config.py", ""): "accelerate's own word, in its configuration",
    ("recipe/deepspeed.py", ""): "DeepSpeed's own word, in its files",
    ("recipe/engines.py", ""): "the constant that planning compares parallel.engine with",
    ("training/rank_speed.py", "__init__"): "rank_speed is a mode of running, measured as it runs",
    ("inference/serving/openai_requests.py", ""): "a word of OpenAI's API",
    ("tracking/wandb_run.py", ""): "tracking.wandb is a mode of running",
    ("tracking/card.py", ""): "form of a data source",
    ("data/sources/locate.py", ""): "form of a data source, known when it is looked at",
    ("data/sources/open_parts.py", ""): "form of a data source, known when it is looked at",
    ("data/sources/folders.py", ""): "form of a data source, known when it is looked at",
    ("data/sources/folder_contents.py", ""): "form of a data source, known when it is looked at",
    ("tasks/text/row_formats.py", ""): "form of a row, known row by row",
    ("tasks/preference/card.py", "resolved_beta"): "beta follows from options.loss alone",
    ("models/load.py", "_attention"): "model.attention: a choice that transformers made is not at fault",
    ("models/random_model.py", "build_random"): "model.attention: the choice is left to transformers",
    ("models/pretrained.py", "_read_weights"): "model.attention: the choice is left to transformers",
}


def autos(node: ast.AST, function: str = "", schema: bool = False) -> Iterator[tuple[str, int]]:
    """(function, line) of every string "auto" that is no docstring and no part of a schema."""
    for child in ast.iter_child_nodes(node):
        name, inside = function, schema
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            name, inside = child.name, False
        elif isinstance(child, ast.ClassDef):
            inside = any("Section" in ast.unparse(base) for base in child.bases)
        elif isinstance(child, ast.Constant) and child.value == "auto" and not schema:
            yield name, child.lineno
        yield from autos(child, name, inside)


def found() -> dict[tuple[str, str], list[int]]:
    places: dict[tuple[str, str], list[int]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        file = path.relative_to(PACKAGE).as_posix()
        if file.startswith(("planning/", "shipped/")):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for function, line in autos(tree):
            if function == "" and file in SCHEMA:
                continue  # a Literal that several fields share
            places.setdefault((file, function), []).append(line)
    return places


def is_allowed(entry: tuple[str, str], place: tuple[str, str]) -> bool:
    return place[0].startswith(entry[0]) and entry[1] in ("", place[1])


def test_only_planning_interprets_auto() -> None:
    unexpected = [
        f"finetune/{file}:{lines[0]} ({name})"
        for (file, name), lines in found().items()
        if not any(is_allowed(entry, (file, name)) for entry in ALLOWED)
    ]
    assert not unexpected, "\n".join(["resolve it in planning/resolve.py, or list it with a reason:", *unexpected])


def test_what_is_listed_is_there() -> None:
    places = found()
    idle = [entry for entry in ALLOWED if not any(is_allowed(entry, place) for place in places)]
    assert not idle, "no longer needed: take it from the list"


def test_a_new_auto_would_be_noticed() -> None:
    tree = ast.parse('class A(Section):\n x: str = "auto"\ndef f(r):\n return r.x == "auto"\n')
    assert list(autos(tree)) == [("f", 4)]
