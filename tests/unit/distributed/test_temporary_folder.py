"""Proves where ranks put temporary files, and that what torch has compiled is not one of them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from torch._inductor.runtime.runtime_utils import default_cache_dir

from finetune.distributed import temporary_folder
from finetune.distributed.temporary_folder import COMPILED, VARIABLE, own_temporary_folder, temporary_variables


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """TMPDIR of this test; a limit on names that it keeps."""
    monkeypatch.setattr(temporary_folder, "MOST_BYTES", len(str(tmp_path)) + 20)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    monkeypatch.delenv(COMPILED, raising=False)
    return tmp_path


def test_what_torch_has_compiled_stays_where_torch_keeps_it(place: Path, monkeypatch) -> None:
    usual = default_cache_dir()
    assert temporary_variables(place / "launch") == {VARIABLE: str(place / "launch"), COMPILED: usual}
    monkeypatch.setenv(COMPILED, "/elsewhere")
    assert temporary_variables(place / "launch")[COMPILED] == "/elsewhere"


def test_a_name_too_long_for_sockets_changes_nothing(place: Path) -> None:
    assert temporary_variables(place / ("long" * 6)) == {}


def test_a_process_has_its_own_folder_for_a_time(place: Path) -> None:
    with own_temporary_folder():
        _, name = tempfile.mkstemp()
        assert Path(name).parent.parent == place
        assert len(list(place.iterdir())) == 1
    assert not list(place.iterdir())
    assert tempfile.gettempdir() == os.environ[VARIABLE] == str(place) and COMPILED not in os.environ


def test_where_no_folder_can_be_made_nothing_changes(place: Path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(place / "absent"))
    with own_temporary_folder():
        assert os.environ[VARIABLE] == str(place)
