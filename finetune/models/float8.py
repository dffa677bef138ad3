"""Products of linear layers in float8, by torchao: a layer's input, weight and incoming gradient are scaled and rounded to 8
bits for its matrix products; weights, gradients, optimizer state and checkpoints stay what they are.

A layer keeps its object, name, weights and hooks, and gets the class and the settings that torchao's own conversion gives.
Only passes that train compute in float8: in evaluation mode, or without gradients, a layer computes as it always does, so that
the losses of an evaluation are those that the exported model has.

The products run on tensor cores that multiply float8 (`torch._scaled_mm`), whose matrices have multiples of 16 rows and
columns. Sizes of layers are looked at here; numbers of tokens, which are the inner dimension of a weight's gradient, are padded
by torchao.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from finetune.errors import UserError
from finetune.models.device import uses_cuda
from finetune.models.head import embedding_modules, head_names
from finetune.models.repeated_layers import kind_of

KEY = "model.float8"
PACKAGE = "torchao"
MULTIPLE = 16
LEAST_CAPABILITY = (8, 9)  # Ada; Hopper is 9.0
LEAST_CAPABILITY_AMD = (9, 4)  # MI300
ROUTERS = ("gate", "router")  # of mixtures of experts: their choices flip with rounding, and their products are small

Notify = Callable[[str], None]


def check_float8(precision: str) -> None:
    """Raises: UserError if this process cannot train in float8, or the training is not in bf16."""
    if precision != "bf16":
        raise UserError(
            f"float8 takes the place of products in bf16, and this training is in {precision}",
            where=KEY,
            remedy=f"Set training.precision: bf16, or {KEY}: none.",
        )
    if not uses_cuda():
        raise UserError("float8 needs a GPU", where=KEY, remedy=f"Train on a GPU, or set {KEY}: none.")
    found = torch.cuda.get_device_capability()
    is_amd = bool(getattr(torch.version, "hip", None))
    least, which = (LEAST_CAPABILITY_AMD, "MI300") if is_amd else (LEAST_CAPABILITY, "Ada, Hopper")
    if found < least:
        raise UserError(
            f"float8 needs a GPU of compute capability {_dotted(least)} or higher ({which}), and "
            f"{torch.cuda.get_device_properties(torch.cuda.current_device()).name} has {_dotted(found)}",
            where=KEY,
            remedy=f"Set {KEY}: none.",
        )
    if importlib.util.find_spec(PACKAGE) is None:
        raise UserError(
            f"float8 needs {PACKAGE}, which is not installed", where=KEY, remedy="Run: pip install 'finetune[float8]'"
        )


def use_float8(model: nn.Module, scaling: str, notify: Notify, *, emulate: bool = False) -> int:
    """Let the linear layers of `model` that train compute in float8; returns how many do. Any rank may call it alone.

    scaling: the name of torchao's recipe, tensorwise or rowwise_with_gw_hp. notify: takes one line with what was converted,
    and what was not. emulate: round as float8 does and multiply in float32, on any device.

    Raises: UserError if there is no layer to convert.
    """
    layers, left = _choose(model)
    if not layers:
        raise UserError(
            f"a {kind_of(model)} model has no linear layers to compute in float8 ({_in_words(left) or 'none at all'})",
            where=KEY,
            remedy=f"Set {KEY}: none.",
        )
    settings = _settings(scaling, emulate=emulate)
    classes: dict[type, type] = {}
    for layer in layers:
        _convert(layer, settings, classes)
    weights = sum(weight.numel() for weight in model.parameters())
    share = sum(layer.weight.numel() for layer in layers) / max(weights, 1)
    rest = f"; left as they are: {_in_words(left)}" if left else ""
    notify(
        f"{KEY}: {len(layers)} linear layers ({share:.0%} of all weights) multiply in float8 where they train, "
        f"{scaling}{' (emulated)' if emulate else ''}{rest}"
    )
    return len(layers)


def _choose(model: nn.Module) -> tuple[list[nn.Linear], dict[str, tuple[int, str]]]:
    """The layers to convert, and those that stay: {reason: (how many, the name of the first)}."""
    has_body = hasattr(
        model, getattr(model, "base_model_prefix", "") or " "
    )  # else the head is the output embeddings, as in T5
    names = head_names(model) if has_body else []
    heads = {part for name in names for part in model.get_submodule(name).modules()}
    heads.update(embedding_modules(model))
    chosen: list[nn.Linear] = []
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        if reason := _obstacle(name, layer, is_head=layer in heads):
            counts[reason] += 1
            first.setdefault(reason, f"{name} {layer.in_features}x{layer.out_features}")
        else:
            chosen.append(layer)
    return chosen, {reason: (count, first[reason]) for reason, count in counts.items()}


def _obstacle(name: str, layer: nn.Linear, *, is_head: bool) -> str:
    """Why a linear layer stays as it is; "" if it is converted."""
    if is_head:
        return "of the head"
    if type(layer) is not nn.Linear or "forward" in vars(layer):
        return "of other kinds"
    if not layer.weight.requires_grad:
        return "frozen"
    if name.rpartition(".")[2] in ROUTERS:
        return "routers of experts"
    if layer.in_features % MULTIPLE or layer.out_features % MULTIPLE:
        return f"with sizes that are not multiples of {MULTIPLE}"
    return ""


def _in_words(left: dict[str, tuple[int, str]]) -> str:
    """{"frozen": (3, "a.b 8x8")} -> "3 frozen (first: a.b 8x8)"."""
    return ", ".join(f"{count} {reason} (first: {name})" for reason, (count, name) in left.items())


def _settings(scaling: str, *, emulate: bool) -> Any:
    """torchao's configuration of a recipe. Where weights' gradients are products in float8, their inner dimension is the number
    of tokens, which is padded with zeros.
    """
    recipe = importlib.import_module(f"{PACKAGE}.float8").Float8LinearConfig.from_recipe_name(scaling)
    return dataclasses.replace(recipe, emulate=emulate, pad_inner_dim=scaling == "tensorwise")


def _convert(layer: nn.Linear, settings: Any, classes: dict[type, type]) -> None:
    """Give `layer` the class and the settings of torchao's conversion of it. classes: those made so far, by torchao's own."""
    convert = importlib.import_module(f"{PACKAGE}.float8").convert_to_float8_training
    converted = convert(layer, config=settings)
    kind = type(converted)
    if kind not in classes:
        classes[kind] = _subclass(kind)
    for name, value in vars(converted).items():
        if name not in vars(layer):
            setattr(layer, name, value)
    layer.__class__ = classes[kind]


def _subclass(kind: Any) -> type:
    def forward(layer: Any, input: torch.Tensor) -> torch.Tensor:
        if not (layer.training and torch.is_grad_enabled() and input.numel()):
            return nn.functional.linear(input, layer.weight, layer.bias)
        device = input.device.type
        if device != "meta" and torch.is_autocast_enabled(device):
            input = input.to(torch.get_autocast_dtype(device))
        result: torch.Tensor = kind.forward(layer, input)
        return result

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
