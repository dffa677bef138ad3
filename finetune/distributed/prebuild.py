"""DeepSpeed's C++ extensions, built before they are needed: one process compiles, the others wait, and say why."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils import cpp_extension

from finetune.errors import FinetuneError
from finetune.recipe.optimizers import OPTIMIZERS
from finetune.units import format_seconds

Notify = Callable[[str], None]

STALE_SECONDS = (
    300.0  # without a change of the build's files: no process is building; one file takes two minutes at most
)


@dataclass(frozen=True)
class Extension:
    """name: as DeepSpeed and its cache folder call it. minutes: about how long two cores compile it."""

    name: str
    builder: str
    purpose: str
    minutes: float


SHARED_MEMORY = Extension("deepspeed_shm_comm", "ShareMemCommBuilder", "collectives between ranks on CPU", 1.2)
CPU_ADAM = Extension("cpu_adam", "CPUAdamBuilder", "optimizer state in main memory (offload)", 1.7)
# Of the optimizers that run in one CUDA kernel; not measured here: half a minute to a minute and a half by nvcc.
FUSED_ADAM = Extension("fused_adam", "FusedAdamBuilder", "deepspeed_adam's CUDA kernel", 0.9)
FUSED_LION = Extension("fused_lion", "FusedLionBuilder", "deepspeed_lion's CUDA kernel", 0.9)
OF_OPTIMIZERS = {one.name: one for one in (CPU_ADAM, FUSED_ADAM, FUSED_LION)}


def extensions(*, cuda: bool) -> tuple[Extension, ...]:
    """What this kind of machine compiles: the collectives are needed where there is no CUDA."""
    return (CPU_ADAM,) if cuda else (SHARED_MEMORY, CPU_ADAM)


def missing_tools() -> list[str]:
    """Programs that the build needs and this machine lacks."""
    compiler = os.environ.get("CXX", "g++")
    return [tool for tool in (compiler, "ninja") if shutil.which(tool) is None]


def choose_cache() -> Path:
    """Set where torch keeps this installation's libraries, and which ninja builds them; TORCH_EXTENSIONS_DIR overrides it.

    torch's own choice is one folder for all virtual environments of a user, and a library is built anew whenever the
    sources' path differs from the last build's: two environments would rebuild for each other at every start.
    """
    if not os.environ.get("TORCH_EXTENSIONS_DIR"):
        spec = importlib.util.find_spec("deepspeed")
        owner = hashlib.blake2b(str(spec.origin if spec else "").encode(), digest_size=4).hexdigest()
        root = Path(cpp_extension.get_default_build_root()) / f"{_torch_flavour()}-{owner}"
        os.environ["TORCH_EXTENSIONS_DIR"] = str(root)
    _prefer_own_ninja()
    return Path(os.environ["TORCH_EXTENSIONS_DIR"])


def _prefer_own_ninja() -> None:
    """This installation's ninja comes first on PATH. Versions of ninja disagree on whether a library is up to date: a
    program started from an activated environment, and one started by its path, would rebuild for each other.
    """
    scripts = Path(sys.executable).parent
    own, found = scripts / "ninja", shutil.which("ninja")
    if own.is_file() and (found is None or Path(found) != own):
        os.environ["PATH"] = os.pathsep.join([str(scripts), *filter(None, [os.environ.get("PATH")])])


def build_folder(extension: Extension) -> Path:
    """Where torch keeps the built library."""
    return choose_cache() / extension.name


def is_built(extension: Extension) -> bool:
    """Is the library there? It is loaded, and so truly checked, by `prebuild`."""
    return (build_folder(extension) / f"{extension.name}.so").is_file()


def announce_builds(needed: Iterable[Extension], notify: Notify) -> None:
    """Say which of these DeepSpeed will now compile, and how long that takes.

    Without it, the first training on a machine would be silent for a minute or two.
    """
    for extension in needed:
        if not is_built(extension):
            notify(
                f"starting DeepSpeed: it compiles {extension.name} ({extension.purpose}), about {extension.minutes:g} "
                "minutes, once on this machine (finetune doctor --build does it in advance)"
            )


def of_optimizer(name: str) -> tuple[Extension, ...]:
    """What DeepSpeed compiles when it makes the optimizer `name` of recipe/optimizers.py, with its engine or without."""
    extension = OPTIMIZERS[name].extension
    return (OF_OPTIMIZERS[extension],) if extension else ()


def prebuild(notify: Notify, *, cuda: bool) -> None:
    """Build, or find built, every extension of this machine. One process a machine builds at a time.

    Raises: FinetuneError if the tools are missing or the compiler fails.
    """
    for extension in extensions(cuda=cuda):
        with _locked(build_folder(extension), notify):
            if not is_built(extension):
                _require_tools(extension)
                notify(f"building {extension.name} ({extension.purpose}): about {extension.minutes:g} minutes, once")
            known, before = is_built(extension), time.monotonic()
            _outwait(build_folder(extension), notify)
            _load(extension, cuda=cuda)
            took = format_seconds(time.monotonic() - before)
            notify(f"{extension.name}: already built" if known else f"{extension.name}: built in {took}")


def _load(extension: Extension, *, cuda: bool) -> None:
    """Compile what is out of date and import the library; DeepSpeed's own output is left out."""
    if not cuda:
        os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        from deepspeed.accelerator import get_accelerator

        builder: Any = get_accelerator().create_op_builder(extension.builder)
        if builder is None:
            raise FinetuneError(f"DeepSpeed has no {extension.builder} for this machine")
        builder.load(verbose=False)
    except (RuntimeError, OSError, ImportError) as error:
        raise FinetuneError(
            f"{extension.name} could not be built: {_last_line(error)}",
            where=str(build_folder(extension)),
            remedy="Remove that folder and try again; `parallel.deepspeed: none` trains without DeepSpeed.",
        ) from error


def _require_tools(extension: Extension) -> None:
    missing = missing_tools()
    if missing:
        raise FinetuneError(
            f"{extension.name} cannot be built: no {' and no '.join(missing)}",
            remedy="apt-get install g++ (dnf install gcc-c++); pip install ninja. "
            "`parallel.deepspeed: none` trains without DeepSpeed.",
        )


@contextmanager
def _locked(folder: Path, notify: Notify) -> Iterator[None]:
    """Make this process the only one on the machine that builds in the folder; the lock ends with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.finetune-lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            notify(f"another process builds {folder.name}: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _outwait(folder: Path, notify: Notify) -> None:
    """torch's own lock, where its mere existence blocks: another build holds it, or one that was killed, for which torch
    would wait forever. From 2.14 on, torch asks the kernel for a lock on that file, which ends with its process, and leaves
    the file there: nothing to wait for.
    """
    if not hasattr(cpp_extension, "FileBaton"):
        return
    lock = folder / "lock"
    reported = False
    while lock.exists():
        newest = max((item.stat().st_mtime for item in folder.iterdir()), default=0.0)
        if time.time() - newest > STALE_SECONDS:
            notify(f"removing the lock of a build that died: {lock}")
            lock.unlink(missing_ok=True)
        elif not reported:
            notify(
                f"a build seems to be under way in {folder}: waiting for it, {format_seconds(STALE_SECONDS)} at most"
            )
            reported = True
        time.sleep(0.2)


def _torch_flavour() -> str:
    """The folder between the cache's root and the extension, such as py311_cpu or py312_cu126; torch's own rule."""
    version = torch.version
    kind = f"rocm{version.hip}" if version.hip else f"cu{version.cuda}" if version.cuda else "cpu"
    return f"py{sys.version_info.major}{sys.version_info.minor}{getattr(sys, 'abiflags', '')}_{kind.replace('.', '')}"


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line]
    return (errors or lines or [type(error).__name__])[0].strip()
