"""Where Python keeps compiled modules, if libraries were installed without them and may not be given them. No torch here.

Compiling the modules of torch and transformers anew takes 6 of 9 seconds of a core, in each process of each start. So it is in
images that set PYTHONDONTWRITEBYTECODE, and where the folder of the libraries is read-only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import cache_from_source, find_spec
from pathlib import Path

from finetune.data.prepare.cache import cache_folder

LIBRARIES = ("torch", "transformers")
PREFIX, DO_NOT_WRITE = "PYTHONPYCACHEPREFIX", "PYTHONDONTWRITEBYTECODE"


def bytecode_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables for processes that import the libraries: compiled modules in this user's cache; {} where the libraries have
    them, or get them by being imported, and where the user has chosen a place.
    """
    if environ.get(PREFIX) or not any(_lacks_bytecode(name, environ) for name in LIBRARIES):
        return {}
    return {PREFIX: str(cache_folder() / "bytecode" / "libraries"), DO_NOT_WRITE: ""}


def _lacks_bytecode(name: str, environ: Mapping[str, str]) -> bool:
    spec = find_spec(name)
    if spec is None or spec.origin is None or Path(cache_from_source(spec.origin)).is_file():
        return False
    return bool(environ.get(DO_NOT_WRITE)) or not os.access(Path(spec.origin).parent, os.W_OK)
