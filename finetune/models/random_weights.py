"""Random weights drawn where the model will compute, each module by a generator of its own: `model.init_device: gpu`.

An ordinary constructor draws all weights from one stream of numbers on the CPU: minutes for 8B parameters. Here the model is
built on the device without memory for its weights, and then those of each module are drawn by the model's own rules
(`_init_weights`), from a generator seeded by the recipe's seed and the module's dotted name. So they depend on nothing else:
not on rank, engine, ZeRO stage, or on which other modules there are. The numbers are those of the device's generator, which
differ between a CPU and a GPU, and from those of an ordinary constructor; the distributions are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from finetune.errors import UserError
from finetune.models.device import uses_cuda


def drawing_device() -> torch.device:
    """This rank's GPU; the CPU where there is none, with the same code."""
    return torch.device("cuda", torch.cuda.current_device()) if uses_cuda() else torch.device("cpu")


def build_by_name(build: Callable[[], Any], *, seed: int, device: torch.device, dtype: torch.dtype) -> Any:
    """What `build` makes (a model of transformers), on `device`, with the weights of each module drawn by its name.

    dtype: of the weights. They are drawn as the model makes them, in float32, and cast one after the other: all of them never
    take more memory than in `dtype`, beside the largest one. The states of the generators are as before.

    Raises: UserError for weights that neither the model's `_init_weights` nor the module's `reset_parameters` draws.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(seed)
        with device, _weights_without_memory():
            model = build()
        _draw(model, seed, device, dtype)
        _refuse_undrawn(model)
    return model


@contextmanager
def _weights_without_memory() -> Iterator[None]:
    """Weights of modules that are made inside have a shape and a type alone; buffers have their values.

    `torch.device("meta")` takes the values of buffers, too; accelerate's `init_empty_weights` those of integers,
    and it gives a weight's attributes to its constructor, which refuses them.
    """
    register = nn.Module.register_parameter

    def register_empty(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and parameter.is_floating_point() and not parameter.is_meta:
            empty = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
            vars(empty).update(vars(parameter))
            parameter = empty
        register(module, name, parameter)

    with patch.object(nn.Module, "register_parameter", register_empty):
        yield


Visit = tuple[str, Any, Any]
"""Dotted name, module, and the model whose rules hold for it."""


def _draw(model: Any, seed: int, device: torch.device, dtype: torch.dtype) -> None:
    visits = list(_inner_first("", model, model))
    finished = _last_writes(visits, seed)
    made: dict[nn.Parameter, nn.Parameter] = {}  # by the one without memory
    drawn: set[nn.Parameter] = set()
    for number, (_, module, _) in enumerate(visits):
        empty = _own(module)
        for key, parameter in empty.items():
            if parameter.is_meta and parameter not in made:
                made[parameter] = _with_memory(parameter, device)
            module._parameters[key] = made.get(parameter, parameter)
        own = list(empty.values())
        if not (own and drawn.issuperset(own)):  # else tied: the first module that holds them has drawn them
            _apply_rules(visits[number], seed, _is_undrawn)
            drawn.update(own)
        for parameter in finished.get(number, ()):
            held = made[parameter]
            held.data = held.data.to(dtype)


def _last_writes(visits: Sequence[Visit], seed: int) -> dict[int, list[nn.Parameter]]:
    """Number of a visit -> weights that no later one writes: rules of a layer may change what those of its parts have drawn.
    Found by a run of the rules without memory.
    """
    last: dict[nn.Parameter, int] = {}
    drawn: set[nn.Parameter] = set()
    inside = [list(module.parameters()) for _, module, _ in visits]
    for number, (_, module, _) in enumerate(visits):
        own = list(_own(module).values())
        if own and drawn.issuperset(own):
            continue
        before = {parameter: parameter._version for parameter in inside[number] if parameter.is_meta}
        try:
            _apply_rules(visits[number], seed, lambda one, before=before: before.get(one) == one._version)  # type: ignore[misc]
            written = [parameter for parameter, version in before.items() if parameter._version != version]
        except (RuntimeError, NotImplementedError):  # a rule that asks for values: as if later ones wrote these, too
            written = list(before)
            last |= dict.fromkeys(before, len(visits) - 1)
        for parameter in written:
            last[parameter] = max(number, last.get(parameter, 0))
        drawn.update(own)
    found: dict[int, list[nn.Parameter]] = {}
    for parameter, number in last.items():
        found.setdefault(number, []).append(parameter)
    return found


def _apply_rules(visit: Visit, seed: int, is_undrawn: Callable[[nn.Parameter], bool]) -> None:
    name, module, draws = visit
    torch.manual_seed(_seed_of(seed, name))
    draws._init_weights(module)
    if any(is_undrawn(parameter) for parameter in _own(module).values()) and hasattr(module, "reset_parameters"):
        torch.manual_seed(_seed_of(seed, name))
        module.reset_parameters()


def _own(module: Any) -> dict[str, nn.Parameter]:
    return {key: parameter for key, parameter in module._parameters.items() if parameter is not None}


def _with_memory(parameter: nn.Parameter, device: torch.device) -> nn.Parameter:
    """One like it, of NaN, so that what nothing draws is noticed."""
    values = torch.empty_like(parameter, device=device).fill_(float("nan"))
    made = nn.Parameter(values, requires_grad=parameter.requires_grad)
    vars(made).update(vars(parameter))
    return made


def _inner_first(name: str, module: Any, draws: Any) -> Iterator[Visit]:
    """Children before parents, as transformers does it."""
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
