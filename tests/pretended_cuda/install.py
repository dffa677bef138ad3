"""Let this process, and with `for_children` the processes it starts, have a pretended CUDA device."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

VARIABLE = "FINETUNE_TESTS_PRETEND_CUDA"
ROOT = Path(__file__).resolve().parents[2]
SITE = Path(__file__).parent / "site"


def for_children(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables with which a Python that is started pretends, too: sitecustomize.py calls `install_when_imported`."""
    path = [str(SITE), str(ROOT), *environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {
        VARIABLE: "1",
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(filter(None, path))),
        "CUDA_VISIBLE_DEVICES": "0",
        "DS_ACCELERATOR": "cuda",
        "TORCHDYNAMO_DISABLE": "1",
    }


def is_pretended() -> bool:
    return VARIABLE in os.environ


def install() -> None:
    """Once, from here on, in every thread."""
    os.environ.update(for_children(os.environ))
    if str(SITE) not in sys.path:
        sys.path.insert(0, str(SITE))  # which test ranks are given as PYTHONPATH
    install_when_imported()
    import torch  # noqa: F401


def install_when_imported() -> None:
    """Modules are changed as soon as they are imported, which may be never."""
    pending = dict(_PATCHES)
    for name in list(pending):
        if name in sys.modules:
            pending.pop(name)(sys.modules[name])
    sys.meta_path.insert(0, _Finder(pending))


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, pending: dict[str, Callable[[ModuleType], None]]) -> None:
        self.pending = pending

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if name not in self.pending:  # until it is executed: some only ask whether there is a module
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_patch(module: ModuleType) -> None:
            execute(module)
            self.pending.pop(name)(module)

        spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]
        return spec


def _patch_torch(torch: Any) -> None:
    from tests.pretended_cuda import autocast, crossings, dispatch, marks, profiler, runtime, storages

    runtime.install()
    autocast.install()
    storages.install()
    profiler.install()
    tensor = torch.Tensor
    tensor.device = property(marks.device_of)
    tensor.is_cuda = property(lambda self: marks.device_of(self).type == "cuda")
    tensor.is_cpu = property(lambda self: marks.device_of(self).type == "cpu")
    tensor.get_device = lambda self: 0 if marks.is_on_cuda(self) else -1
    for name in ("to", "cuda", "cpu", "numpy", "tolist", "pin_memory", "is_pinned", "new_tensor"):
        setattr(tensor, name, getattr(crossings, name))
    tensor.__deepcopy__ = crossings.deep_copy
    tensor.record_stream = lambda self, stream: None
    for name in ("tensor", "as_tensor", "asarray"):
        setattr(torch, name, crossings.constructor(getattr(torch, name)))
    _use_gloo(torch.distributed)
    _enter_everywhere(dispatch.PretendedCuda)
    os.register_at_fork(after_in_child=marks.enter_fork)


def _enter_everywhere(mode: Callable[[], Any]) -> None:
    """Modes belong to threads: this one, and all that start from here on."""
    mode().__enter__()
    begin = threading.Thread._bootstrap_inner  # type: ignore[attr-defined]

    def begin_in_mode(thread: threading.Thread) -> None:
        with mode():
            begin(thread)

    threading.Thread._bootstrap_inner = begin_in_mode  # type: ignore[attr-defined]


def _use_gloo(distributed: Any) -> None:
    """Gradients travel over gloo: there is no NCCL."""
    real = distributed.init_process_group

    def init_process_group(backend: Any = None, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("device_id", None)
        return real("gloo" if backend is None or "nccl" in str(backend) else backend, *args, **kwargs)

    for module in (distributed, distributed.distributed_c10d):
        module.init_process_group, module.is_nccl_available = init_process_group, lambda: True


def _patch_varlen(module: Any) -> None:
    from tests.pretended_cuda.attention import varlen_attn

    module.varlen_attn = varlen_attn


def _patch_machine(module: Any) -> None:
    """Device files by which finetune knows a GPU without torch: this one exists everywhere."""
    module._GPU_SIGNS = ("/dev/null",)


_PATCHES: dict[str, Callable[[ModuleType], None]] = {
    "torch": _patch_torch,
    "torch.nn.attention.varlen": _patch_varlen,
    "finetune.recipe.machine": _patch_machine,
}
