"""Proves that compiled modules go to the cache where libraries have none and may not be given any, and nowhere else."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import cache_from_source
from pathlib import Path

import pytest

from finetune.distributed import bytecode
from finetune.distributed.bytecode import DO_NOT_WRITE, PREFIX, bytecode_variables


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The module of a library that is not compiled."""
    source = tmp_path / "installed" / "uncompiled_library.py"
    source.parent.mkdir()
    source.write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(str(source.parent))
    monkeypatch.setattr(bytecode, "LIBRARIES", ("absent_library", "uncompiled_library"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(source.parent))
    return source


def test_where_nothing_is_written_it_is_kept_in_the_cache(library: Path, tmp_path: Path) -> None:
    variables = bytecode_variables({DO_NOT_WRITE: "1"})
    assert Path(variables[PREFIX]).is_relative_to(tmp_path / "cache")
    env = {"PYTHONPATH": str(library.parent), DO_NOT_WRITE: "1", **variables}
    subprocess.run([sys.executable, "-c", "import uncompiled_library"], env=env, check=True)
    assert len(list(Path(variables[PREFIX]).rglob("uncompiled_library*.pyc"))) == 1
    assert not (library.parent / "__pycache__").exists()


def test_elsewhere_python_keeps_it_as_ever(library: Path) -> None:
    assert bytecode_variables({}) == {}, "the first import writes it beside the library"
    assert bytecode_variables({DO_NOT_WRITE: "1", PREFIX: "/elsewhere"}) == {}
    compiled = Path(cache_from_source(str(library)))
    compiled.parent.mkdir()
    compiled.touch()
    assert bytecode_variables({DO_NOT_WRITE: "1"}) == {}


@pytest.mark.parametrize("shared", ["", "bytecode"])
def test_a_folder_that_others_may_write_to_is_not_used(library: Path, tmp_path: Path, shared: str) -> None:
    folder = tmp_path / "cache" / "finetune" / shared
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert bytecode_variables({DO_NOT_WRITE: "1"}) == {}


def test_a_link_to_somewhere_else_is_not_used(library: Path, tmp_path: Path) -> None:
    (tmp_path / "cache" / "finetune").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "cache" / "finetune" / "bytecode").symlink_to(tmp_path / "elsewhere")
    assert bytecode_variables({DO_NOT_WRITE: "1"}) == {}
