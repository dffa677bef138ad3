"""Proves that transformers finds the same names quickly, and is left alone where it has other functions."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers
from transformers.utils import import_utils

from finetune.distributed.quick_listing import MODULE, _Finder, quick_listing, speed_up

FRESH = """
import json, sys
from finetune.distributed.quick_listing import quick_listing
with quick_listing():
    import transformers
    from transformers.models.auto.tokenization_auto import AutoTokenizer
print(any("quick_listing" in type(finder).__module__ for finder in sys.meta_path))
module = sys.modules["transformers.utils.import_utils"]
print(module.fetch__all__.__name__, hasattr(module.create_import_structure_from_path, "cache_info"))
print(module.create_import_structure_from_path.cache_info().misses)
print(sorted(dir(transformers)) == json.loads(sys.stdin.read()))
"""


def quick() -> Any:
    """Functions of their own, so that the module of the other tests stays as it is."""
    module = SimpleNamespace(
        fetch__all__=import_utils.fetch__all__,
        create_import_structure_from_path=functools.lru_cache(lambda path: [path]),
    )
    speed_up(module)  # type: ignore[arg-type]
    return module


def test_every_file_of_transformers_exports_the_same_names() -> None:
    names_of, original = quick().fetch__all__, import_utils.fetch__all__
    files = sorted(Path(transformers.__path__[0]).rglob("*.py"))
    assert len(files) > 1000
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert names_of(text) == original(text), file


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x = 1\n",
        '__all__ = ["a", "b"]\n',
        'x = 1\n__all__ = [\n    "a",\n    "b",\n]\ny = 2\n',
        'print("__all__ of it")\n',
        '__all__ = ["a"]\nx = 1\n__all__ = ["b"]\n',
        'x = 1\n# __all__ = ["no"]\n__all__ = ["yes"]\n',
        'x = 1\r\n__all__ = ["windows"]\r\n',
        'x = 1\x0c__all__ = ["after a form feed"]\n',
        'x = 1\n__all__ += ["more"]\n',
    ],
)
def test_any_text_gives_what_transformers_finds(text: str) -> None:
    assert quick().fetch__all__(text) == import_utils.fetch__all__(text)


def test_a_new_process_imports_the_same_library_and_reads_each_folder_once() -> None:
    names = subprocess.run(
        [sys.executable, "-c", "import json, transformers; print(json.dumps(sorted(dir(transformers))))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = subprocess.run(
        [sys.executable, "-c", FRESH], input=names, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert lines[:2] == ["False", "quick_names_of True"]
    folders = sum(path.is_dir() and path.name != "__pycache__" for path in Path(transformers.__path__[0]).rglob("*"))
    assert 0 < int(lines[2]) <= folders + 1
    assert lines[3] == "True"


def test_a_version_without_these_functions_is_left_as_it_is() -> None:
    module = SimpleNamespace(create_import_structure_from_path=len)
    speed_up(module)  # type: ignore[arg-type]
    assert vars(module) == {"create_import_structure_from_path": len}


def test_nothing_is_hooked_where_it_is_imported_already() -> None:
    assert MODULE in sys.modules
    before = list(sys.meta_path)
    with quick_listing():
        assert sys.meta_path == before
    assert not any(isinstance(finder, _Finder) for finder in sys.meta_path)
