"""`finetune doctor`: what this machine has, what is missing, and how to get it. Asks no network, changes nothing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finetune.errors import EXIT_DONE, EXIT_FAILED
from finetune.recipe.machine import has_cuda
from finetune.recipe.quotas import available_cores
from finetune.units import format_bytes

State = Literal["ok", "note", "missing"]
LOW_DISK_BYTES = 10 * 2**30


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis. remedy: what to do where the state is not ok."""

    state: State
    subject: str
    fact: str
    remedy: str = ""


def doctor(*, build: bool) -> int:
    """Print the diagnosis, or build DeepSpeed's C++; the exit code is 1 if something that training needs is missing.

    Raises: FinetuneError if the build fails.
    """
    if build:
        from finetune.distributed.prebuild import prebuild

        prebuild(print, cuda=has_cuda())
        return EXIT_DONE
    findings = list(examine())
    for finding in findings:
        _print(finding)
    missing = sum(finding.state == "missing" for finding in findings)
    print(f"\n{missing} missing" if missing else "\nready to train: finetune train quickstart")
    return EXIT_FAILED if missing else EXIT_DONE


def examine() -> Iterator[Finding]:
    """All checks, in the order of the report."""
    yield _python()
    yield from _machine()
    yield from _gpus()
    yield from _libraries()
    yield from _torchvision()
    yield from _compiler()
    yield from _extensions()
    yield _wandb()
    yield _hub()


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("ok", "python", f"{version} in {sys.prefix}")


def _machine() -> Iterator[Finding]:
    import psutil

    cores = available_cores()
    memory = psutil.virtual_memory()
    free, total = format_bytes(memory.available), format_bytes(memory.total)
    yield Finding("ok", "processor", f"{cores} cores; memory {free} free of {total}")
    disk = shutil.disk_usage(Path.cwd())
    fact = f"{format_bytes(disk.free)} free of {format_bytes(disk.total)} in {Path.cwd()}"
    low = disk.free < LOW_DISK_BYTES
    yield Finding("note" if low else "ok", "disk", fact, "checkpoints of large models need more" if low else "")
    shared = Path("/dev/shm")
    if shared.is_dir() and shutil.disk_usage(shared).total < 2**30:
        total = format_bytes(shutil.disk_usage(shared).total)
        yield Finding(
            "note", "shared memory", f"/dev/shm holds {total}", "docker run --shm-size=8g (loader processes use it)"
        )


def _gpus() -> Iterator[Finding]:
    if not has_cuda():
        yield Finding("ok", "GPU", "none seen: training runs on the CPU, ranks speak through gloo")
        return
    import torch

    from finetune.models.device import why_no_gpu

    if not torch.cuda.is_available():
        remedy = "pip install a CUDA build of torch, or set DS_ACCELERATOR=cpu to train on the CPU"
        what = f"there is one, but torch {torch.__version__} cannot use it ({why_no_gpu()})"
        yield Finding("missing", "GPU", what, remedy)
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        yield Finding("ok", f"GPU {index}", f"{properties.name}, {format_bytes(properties.total_memory)}, {bf16}")


def _libraries() -> Iterator[Finding]:
    """Versions against what finetune requires."""
    from packaging.requirements import Requirement

    declared = _declared()
    good = []
    for text in declared:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding("missing", requirement.name, "not installed", f"pip install '{requirement}'")
            continue
        if requirement.specifier.contains(version, prereleases=True):
            good.append(f"{requirement.name} {version}")
        else:
            fact = f"{version}, but {requirement.specifier} is needed"
            yield Finding("missing", requirement.name, fact, f"pip install '{requirement}'")
    yield Finding("ok", "libraries", ", ".join(good))


def _declared() -> list[str]:
    """Requirements of the installed package, or of the checkout that this runs from."""
    try:
        return importlib.metadata.requires("finetune") or []
    except importlib.metadata.PackageNotFoundError:
        import tomllib

        pyproject = Path(__file__).resolve().parents[2] / "pyproject.toml"
        if not pyproject.is_file():
            return []
        return tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["dependencies"]


def _torchvision() -> Iterator[Finding]:
    """A torchvision built for another torch breaks `import transformers` itself, with a message that misleads."""
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # whatever it is, it is the diagnosis
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        yield Finding("missing", "torchvision", f"does not fit this torch: {reason}", "pip uninstall torchvision")


def _compiler() -> Iterator[Finding]:
    """DeepSpeed compiles its C++ with g++ and ninja: always without CUDA, with it only for offload."""
    from finetune.distributed.prebuild import missing_tools

    missing = missing_tools()
    if not missing:
        yield Finding("ok", "compiler", "g++ and ninja, for DeepSpeed's C++")
        return
    state: State = "note" if has_cuda() else "missing"
    needed = "for offload only" if has_cuda() else "for DeepSpeed on the CPU; parallel.deepspeed: none trains without"
    remedy = f"apt-get install g++, or dnf install gcc-c++; pip install ninja ({needed})"
    yield Finding(state, "compiler", f"no {' and no '.join(missing)}", remedy)


def _extensions() -> Iterator[Finding]:
    from finetune.distributed.prebuild import extensions, is_built

    for extension in extensions(cuda=has_cuda()):
        built = is_built(extension)
        fact = f"{extension.purpose}: {'built' if built else 'not built yet'}"
        remedy = "" if built else f"finetune doctor --build (about {extension.minutes:g} minutes, once)"
        yield Finding("ok" if built else "note", extension.name, fact, remedy)


def _wandb() -> Finding:
    """Only whether there is a key: the key itself is nobody's to see."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return Finding("ok", "W&B", f"WANDB_MODE={os.environ['WANDB_MODE']}")
    if os.environ.get("WANDB_API_KEY") or _netrc_has_wandb():
        return Finding("ok", "W&B", "an API key is at hand: runs are logged online")
    return Finding("note", "W&B", "no API key: runs are logged offline", "wandb login; later: wandb sync RUN")


def _netrc_has_wandb() -> bool:
    netrc = Path(os.path.expanduser(os.environ.get("NETRC") or "~/.netrc"))  # noqa: PTH111 - pathlib raises RuntimeError
    try:
        return "wandb" in netrc.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _hub() -> Finding:
    named = os.environ.get("HF_HUB_CACHE") or f"{os.environ.get('HF_HOME') or '~/.cache/huggingface'}/hub"
    cache = Path(os.path.expanduser(named))  # noqa: PTH111 - pathlib raises RuntimeError
    models = list(cache.glob("models--*")) if cache.is_dir() else []
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    fact = f"{len(models)} models in the cache; " + (
        "HF_HUB_OFFLINE is set" if offline else "others are fetched when used"
    )
    return Finding("ok", "hub", fact)


def _print(finding: Finding) -> None:
    mark = {"ok": "ok     ", "note": "note   ", "missing": "MISSING"}[finding.state]
    print(f"{mark}  {finding.subject:<18}  {finding.fact}")
    if finding.remedy:
        print(f"{'':29}{finding.remedy}")
