"""Where Python keeps compiled modules, if libraries were installed without them and may not be given them. No torch here.

Compiling the modules of torch and transformers anew takes 6 of 9 seconds of a core, in each process of each start. So it is in
images that set PYTHONDONTWRITEBYTECODE, and where the folder of the libraries is read-only.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from importlib.util import cache_from_source, find_spec
from pathlib import Path

from finetune.data.prepare.cache import cache_folder

LIBRARIES = ("torch", "transformers")
PREFIX, DO_NOT_WRITE = "PYTHONPYCACHEPREFIX", "PYTHONDONTWRITEBYTECODE"


def bytecode_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables for processes that import the libraries: compiled modules in this user's cache; {} where the libraries have
    them, or get them by being imported, where the user has chosen a place, and where the cache could be another user's:
    compiled modules are code.
    """
    if environ.get(PREFIX) or not any(_lacks_bytecode(name, environ) for name in LIBRARIES):
        return {}
    folder = cache_folder() / "bytecode"
    return {PREFIX: str(folder / "libraries"), DO_NOT_WRITE: ""} if _is_private(folder) else {}


def _is_private(folder: Path) -> bool:
    """Whether `folder`, made if it is not there, and the one that it is in can be changed by this user alone."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        states = [folder.lstat(), folder.parent.stat()]
    except OSError:
        return False
    others = stat.S_IWGRP | stat.S_IWOTH
    return stat.S_ISDIR(states[0].st_mode) and all(
        state.st_uid == os.getuid() and not state.st_mode & others for state in states
    )


def _lacks_bytecode(name: str, environ: Mapping[str, str]) -> bool:
    spec = find_spec(name)
    if spec is None or spec.origin is None or Path(cache_from_source(spec.origin)).is_file():
        return False
    return bool(environ.get(DO_NOT_WRITE)) or not os.access(Path(spec.origin).parent, os.W_OK)
