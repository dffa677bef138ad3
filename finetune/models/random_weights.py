"""Random weights drawn where the model will compute, each module by a generator of its own: `model.init_device: gpu`.

An ordinary constructor draws all weights from one stream of numbers on the CPU: minutes for 8B parameters. Here the model is
built on the device, and then the weights of each module are drawn again, by the model's own rules (`_init_weights`), from a
generator seeded by the recipe's seed and the module's dotted name. So they depend on nothing else: not on rank, engine, ZeRO
stage, or on which other modules there are. The numbers are those of the device's generator, which differ between a CPU and a
GPU, and from those of an ordinary constructor; the distributions are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from finetune.errors import UserError
from finetune.models.device import uses_cuda


def drawing_device() -> torch.device:
    """This rank's GPU; the CPU where there is none, with the same code."""
    return torch.device("cuda", torch.cuda.current_device()) if uses_cuda() else torch.device("cpu")


def build_by_name(build: Callable[[], Any], *, seed: int, device: torch.device) -> Any:
    """What `build` makes (a model of transformers), on `device`, with the weights of each module drawn by its name.

    The states of the generators are as before. Raises: UserError for weights that neither the model's `_init_weights` nor
    the module's `reset_parameters` draws.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(seed)
        with device:
            model = build()
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.fill_(float("nan"))  # so that one which nothing draws is noticed
        _draw(model, seed)
        _refuse_undrawn(model)
    return model


def _draw(model: Any, seed: int) -> None:
    drawn: set[int] = set()
    for name, module, draws in _inner_first("", model, model):
        own = list(module.parameters(recurse=False))
        if own and all(id(parameter) in drawn for parameter in own):
            continue  # tied: the first module that holds them has drawn them
        torch.manual_seed(_seed_of(seed, name))
        draws._init_weights(module)
        if any(_is_undrawn(parameter) for parameter in own) and hasattr(module, "reset_parameters"):
            torch.manual_seed(_seed_of(seed, name))
            module.reset_parameters()
        drawn.update(map(id, own))


def _inner_first(name: str, module: Any, draws: Any) -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, module, the model whose rules hold for it), children before parents, as transformers does it."""
    draws = module if hasattr(module, "_init_weights") else draws
    for child, inner in module.named_children():
        yield from _inner_first(f"{name}.{child}" if name else child, inner, draws)
    yield name, module, draws


def _seed_of(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "big") >> 1


def _is_undrawn(parameter: nn.Parameter) -> bool:
    return parameter.is_floating_point() and bool(parameter.isnan().any())


def _refuse_undrawn(model: nn.Module) -> None:
    names = [name for name, parameter in model.named_parameters() if _is_undrawn(parameter)]
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise UserError(
            f"model.init_device: gpu: no rule of {type(model).__name__} draws {', '.join(names[:3])}{more}",
            where="model.init_device",
            remedy="Set model.init_device: cpu: the constructor draws them.",
        )
