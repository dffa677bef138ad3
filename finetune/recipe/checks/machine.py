"""What this machine lacks: files, CUDA, packages. Left out for a recipe that runs elsewhere."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path

from finetune.errors import Fault
from finetune.recipe.checks.context import CheckContext
from finetune.recipe.checks.deepspeed import PRECISIONS, offloads_optimizer, stored_config
from finetune.recipe.deepspeed import Asked, config_faults
from finetune.recipe.faults import nearest
from finetune.recipe.machine import has_cuda
from finetune.recipe.optimizers import OPTIMIZERS
from finetune.recipe.paths import is_pattern, is_present, path_keys
from finetune.recipe.shelf import find_deepspeed_config
from finetune.recipe.trackers import TRACKERS

CUDA_PRECISIONS = ("fp16", "tf32")


def check_files(context: CheckContext) -> Iterator[Fault]:
    """Local files that exist."""
    for path in path_keys(context.draft):
        value = context.draft.get(path)
        if not isinstance(value, str) or is_present(value):
            continue
        if is_pattern(value):
            yield context.fault(path, "matches no file")
            continue
        given = Path(value)
        folder = given.parent
        if not folder.is_dir():
            near = _nearest_in_cwd(given)
            yield context.fault(
                path, f"no such file, and no folder {folder}" if not near else "no such file", near=near
            )
            continue
        near = nearest(given.name, [item.name for item in folder.iterdir()])
        yield context.fault(path, "no such file", near=str(folder / near) if near else _nearest_in_cwd(given))


def check_precision(context: CheckContext) -> Iterator[Fault]:
    """fp16 needs CUDA: its loss scaling and most of its kernels exist only there. tf32 is a mode of its kernels."""
    asked = context.recipe.training.precision
    if asked in CUDA_PRECISIONS and not has_cuda():
        message = f"{asked} needs CUDA, and this machine has none"
        yield context.fault("training.precision", message, allowed="auto, fp32, bf16")
    config = stored_config(context.recipe)
    if config is not None and context.recipe.training.precision not in PRECISIONS and not has_cuda():
        where = str(find_deepspeed_config(context.recipe.parallel.deepspeed))
        faults = config_faults(config, Asked.of(context.recipe, ("fp32",)), where=where)
        yield from (fault for fault in faults if fault.key == "bf16.enabled")


def check_kernels(context: CheckContext) -> Iterator[Fault]:
    """liger-kernel's layers are written in Triton."""
    if context.recipe.model.kernels == "liger" and not has_cuda():
        yield context.fault("model.kernels", "liger needs CUDA, and this machine has none", allowed="auto, none")


def check_float8_machine(context: CheckContext) -> Iterator[Fault]:
    """Tensor cores that multiply float8, and torchao; which GPU it is, the ranks find out (models/float8.py)."""
    if context.recipe.model.float8 == "none":
        return
    if not has_cuda():
        message = "float8 needs a GPU of compute capability 8.9 or higher (Ada, Hopper), and this machine has none"
        yield context.fault("model.float8", message, allowed="none")
    elif importlib.util.find_spec("torchao") is None:
        message = "float8 needs torchao, which is not installed"
        yield context.fault("model.float8", message, allowed="pip install 'finetune[float8]'; or none")


def check_compiler(context: CheckContext) -> Iterator[Fault]:
    """torch.compile writes Triton for a GPU, and C++ for a CPU."""
    if context.recipe.model.compile == "none":
        return
    if has_cuda():
        missing = "" if importlib.util.find_spec("triton") else "triton, which torch for CUDA brings along"
    else:
        missing = "" if any(shutil.which(name) for name in ("g++", "clang++")) else "a C++ compiler (g++)"
    if missing:
        yield context.fault("model.compile", f"needs {missing}, and this machine has none", allowed="none")


def check_optimizer(context: CheckContext) -> Iterator[Fault]:
    """An optimizer that runs where the weights' masters are."""
    spec = OPTIMIZERS[context.recipe.training.optimizer]
    if spec.device == "cuda" and not has_cuda():
        yield context.fault(
            "training.optimizer",
            f"{spec.name} needs CUDA, and this machine has none",
            allowed=", ".join(other.name for other in OPTIMIZERS.values() if other.device != "cuda"),
        )
    if spec.package and importlib.util.find_spec(spec.package) is None:
        message = f"{spec.name} needs {spec.package}, which is not installed"
        allowed = f"pip install 'finetune[{spec.extra}]'; or {spec.same_update}"
        yield context.fault("training.optimizer", message, allowed=allowed)
    if spec.device == "cpu state" and has_cuda() and offloads_optimizer(context.recipe) is False:
        yield context.fault(
            "training.optimizer",
            f"works on state in main memory, but {context.recipe.parallel.deepspeed} keeps it on the GPU",
            allowed="a configuration with offload_optimizer, such as zero2_offload; or adamw",
            on=("parallel.deepspeed",),
        )


def check_trackers(context: CheckContext) -> Iterator[Fault]:
    """Trackers whose packages are missing."""
    for index, name in enumerate(context.recipe.tracking.also):
        if not TRACKERS[name].is_installed:
            remedy = f"pip install 'finetune[{name}]', or remove it here"
            yield context.fault(("tracking", "also", index), f"{name} is not installed", allowed=remedy)


def _nearest_in_cwd(given: Path) -> str:
    """A common mistake: a path relative to the current folder instead of the recipe's."""
    cwd = Path.cwd()
    for depth in range(1, len(given.parts)):
        tail = Path(*given.parts[-depth:])
        if (cwd / tail).is_file():
            return f"{cwd / tail} (paths are relative to the recipe file)"
    return ""
