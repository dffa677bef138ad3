"""Proves that one process at a time builds DeepSpeed's C++, where torch looks for it, and no dead lock hangs it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.utils import cpp_extension

from finetune.distributed import prebuild
from finetune.distributed.prebuild import CPU_ADAM, SHARED_MEMORY, build_folder, extensions
from finetune.errors import FinetuneError
from finetune.recipe.optimizers import OPTIMIZERS

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("moved", [True, False])
def test_the_folder_is_the_one_torch_uses(tmp_path: Path, monkeypatch, moved: bool) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    if not moved:
        monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    folder = build_folder(CPU_ADAM)  # tells torch
    assert folder == Path(cpp_extension._get_build_directory(CPU_ADAM.name, verbose=False))
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace(origin="/another/environment"))
    assert build_folder(CPU_ADAM) != folder
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")


def test_the_ninja_of_the_installation_builds(tmp_path: Path, monkeypatch) -> None:
    """Another version of it would find each library out of date, and so would ours after it."""
    folders = [tmp_path / "environment", tmp_path / "system"]
    for folder in folders:
        folder.mkdir()
        (folder / "ninja").touch(mode=0o755)
    monkeypatch.setattr("sys.executable", str(folders[0] / "python"))
    monkeypatch.setenv("PATH", str(folders[1]))
    for _ in range(2):
        prebuild.choose_cache()
        assert os.environ["PATH"].split(os.pathsep) == [str(folder) for folder in folders]
    (folders[0] / "ninja").unlink()
    monkeypatch.setenv("PATH", str(folders[1]))
    prebuild.choose_cache()
    assert os.environ["PATH"] == str(folders[1])


def test_what_a_machine_needs() -> None:
    assert extensions(cuda=True) == (CPU_ADAM,)
    assert extensions(cuda=False) == (SHARED_MEMORY, CPU_ADAM)


def test_without_a_compiler_the_remedy_is_told(cache: Path, monkeypatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(FinetuneError) as caught:
        prebuild.prebuild(lambda text: None, cuda=False)
    assert "no-such-compiler" in str(caught.value)
    assert "deepspeed: none" in caught.value.remedy


def test_each_is_loaded_once_and_told(cache: Path, monkeypatch) -> None:
    told, loaded = [], []

    def load(extension: prebuild.Extension, *, cuda: bool) -> None:
        loaded.append(extension.name)
        (build_folder(extension) / f"{extension.name}.so").touch()

    monkeypatch.setattr(prebuild, "_load", load)
    prebuild.prebuild(told.append, cuda=False)
    assert [line.partition(":")[0] for line in told if "built in" in line] == loaded
    assert sum("minutes, once" in line for line in told) == 2
    told.clear()
    prebuild.prebuild(told.append, cuda=False)
    assert told == [f"{name}: already built" for name in loaded[:2]]


def test_a_second_builder_waits_for_the_first(cache: Path) -> None:
    hold = (
        "import sys, time; from finetune.distributed.prebuild import _locked, build_folder, CPU_ADAM\n"
        "with _locked(build_folder(CPU_ADAM), print):\n    print('held', flush=True); time.sleep(1)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", hold], env=environment, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        before, told = time.monotonic(), []
        with prebuild._locked(build_folder(CPU_ADAM), told.append):
            assert time.monotonic() - before > 0.5
        assert "waiting" in told[0]


def test_the_lock_of_a_dead_build_is_removed_and_a_live_one_waited_for(cache: Path, monkeypatch) -> None:
    monkeypatch.setattr(cpp_extension, "FileBaton", object, raising=False)  # torch up to 2.13
    folder = build_folder(CPU_ADAM)
    folder.mkdir()
    (folder / "lock").touch()
    os.utime(folder / "lock", (0, 0))
    told: list[str] = []
    prebuild._outwait(folder, told.append)
    assert "died" in told[0]
    assert not (folder / "lock").exists()

    (folder / "lock").touch()
    monkeypatch.setattr(prebuild, "STALE_SECONDS", 0.5)
    told.clear()
    prebuild._outwait(folder, told.append)
    assert "waiting" in told[0]
    assert "died" in told[1]


def test_the_file_that_torch_leaves_after_a_build_is_not_waited_for(cache: Path, monkeypatch) -> None:
    assert hasattr(cpp_extension, "FileBaton") != hasattr(cpp_extension, "FileLock"), "torch has another lock"
    monkeypatch.delattr(cpp_extension, "FileBaton", raising=False)  # torch from 2.14 on
    folder = build_folder(CPU_ADAM)
    folder.mkdir()
    (folder / "lock").touch()
    monkeypatch.setattr(prebuild, "STALE_SECONDS", 0.5)
    told: list[str] = []
    prebuild._outwait(folder, told.append)
    assert (told, (folder / "lock").exists()) == ([], True)


@pytest.mark.parametrize("needed", [(SHARED_MEMORY,), (SHARED_MEMORY, CPU_ADAM), ()])
def test_what_the_first_training_compiles_is_told_before(cache: Path, needed: tuple[prebuild.Extension, ...]) -> None:
    said: list[str] = []
    prebuild.announce_builds(needed, said.append)
    assert [line.split("it compiles ")[1].split()[0] for line in said] == [extension.name for extension in needed]
    assert all("minutes, once on this machine" in line for line in said)
    for extension in needed:
        build_folder(extension).mkdir()
        (build_folder(extension) / f"{extension.name}.so").touch()
    prebuild.announce_builds(needed, said.append)
    assert len(said) == len(needed), "what is there is not compiled again"


def test_every_optimizer_of_deepspeed_says_what_it_compiles() -> None:
    """With DeepSpeed's engine or without; its builder is DeepSpeed's own name for it."""
    from deepspeed.ops import op_builder

    for name, spec in OPTIMIZERS.items():
        extensions = prebuild.of_optimizer(name)
        assert len(extensions) == spec.from_deepspeed, name
    built = {one.name: one.builder for spec in OPTIMIZERS for one in prebuild.of_optimizer(spec)}
    assert sorted(built) == ["cpu_adam", "fused_adam", "fused_lion"]
    folder = Path(op_builder.__file__).parent
    for name, builder in built.items():
        source = folder / ("cpu" if name.startswith("cpu") else "") / f"{name}.py"
        assert f'NAME = "{name}"' in source.read_text() and f"class {builder}(" in source.read_text()
