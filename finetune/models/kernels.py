"""Fused layers: RMSNorm, SwiGLU or GeGLU, and rotary embeddings by liger-kernel, patched into one model.

liger-kernel patches an instance by its model type, and on the way replaces classes and functions of transformers' module for
the whole process. Here the classes are put back, and a function stays plain for tensors that are not on a GPU, so that no
other model is changed. Its losses are not used: models/loss_head.py computes ours.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

from finetune.models.device import uses_cuda

if TYPE_CHECKING:
    import torch
    from torch import nn

PATCHES = "liger_kernel.transformers.monkey_patch"
GATES = {"swiglu": ("silu", "swish"), "geglu": ("gelu_pytorch_tanh",)}  # its kernels -> the activations they compute


def liger_types() -> frozenset[str] | None:
    """Model types that liger-kernel knows; None where it is not installed or cannot be imported, and on a CPU, where it is
    not even imported.
    """
    if not uses_cuda() or importlib.util.find_spec("liger_kernel") is None:
        return None
    try:
        return frozenset(importlib.import_module(PATCHES).MODEL_TYPE_TO_APPLY_LIGER_FN)
    except (ImportError, AttributeError):
        return None


def use_liger(model: nn.Module) -> None:
    """Patch the layers of `model`, which stays as it is otherwise. The plan says that this machine and model type can."""
    if not uses_cuda():
        raise RuntimeError("liger-kernel's layers run on a GPU alone")
    patches = importlib.import_module(PATCHES)
    config: Any = model.config
    apply = patches.MODEL_TYPE_TO_APPLY_LIGER_FN[config.model_type]
    with _only_on_gpus(model):
        patches._apply_liger_kernel_to_instance(model=model, **liger_options(config, apply))


def liger_options(config: Any, apply: Callable[..., None]) -> dict[str, bool]:
    """What of a model is patched: what `apply`, liger-kernel's function for the model type, patches unasked. It raises for
    some of what it does not (rotary embeddings of GLM-4). Its gated layers compute one activation each, whatever the
    configuration says, so they are used only where it says the same.
    """
    text = config.get_text_config()
    activation = getattr(text, "hidden_activation", None) or getattr(text, "hidden_act", None)
    wanted = {"rope": True, "rms_norm": True, **{name: activation in known for name, known in GATES.items()}}
    offered = inspect.signature(apply).parameters
    patched = {name: bool(want and name in offered and offered[name].default) for name, want in wanted.items()}
    return {**patched, "cross_entropy": False, "fused_linear_cross_entropy": False}


@contextmanager
def _only_on_gpus(model: nn.Module) -> Iterator[None]:
    """Within: what is replaced in transformers' modules that `model` is made of. Afterwards classes are what they were, and
    functions are, for tensors that are on no GPU.
    """
    modules = {sys.modules[type(layer).__module__] for layer in model.modules()}
    before = [(module, dict(vars(module))) for module in modules if module.__name__.startswith("transformers.")]
    yield
    for module, names in before:
        for name, plain in names.items():
            if (fast := getattr(module, name)) is not plain:
                _put_back(module, name, plain, fast)


def _put_back(module: ModuleType, name: str, plain: Any, fast: Any) -> None:
    if isinstance(plain, type):
        setattr(module, name, plain)
    elif callable(plain):
        setattr(module, name, _by_device(getattr(plain, "plain", plain), fast))


def _by_device(plain: Callable[..., Any], fast: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def choose(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return (fast if tensor.is_cuda else plain)(tensor, *args, **kwargs)

    choose.plain = plain  # type: ignore[attr-defined]
    return choose
