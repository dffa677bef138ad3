"""How the layers of a model compute while it trains: what is fused, kept for the backward pass, rounded to float8 and compiled,
and in which order that is applied. Each way has a file of its own.

`prepare_layers`, before an adapter, which wraps modules inside the layers and asks whether these are checkpointed:

1. `model.gradient_checkpointing: true`: transformers' own; a layer keeps its input alone.
2. `model.kernels: liger`: fused layers (`kernels.py`). Without them, gated products compute their activation again
   (`gated.py`), unless the whole layer does, or a compiler decides what it keeps.

`convert_layers`, in the engine, which has moved, sharded or sliced the modules by then:

3. `model.float8`: products of linear layers (`float8.py`).
4. On a GPU, other linear layers that train add up their gradients in the matrix products (`accumulated_products.py`).
5. `model.gradient_checkpointing: light`: outputs that need no matrix product are computed again (`light_checkpointing.py`).
6. `model.compile: layers`, last: the compiler traces what the others made of a layer (`compiled.py`).

Settings that exclude each other are refused in `recipe/checks/model.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from finetune.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from finetune.recipe.model import ModelSection


def prepare_layers(model: nn.Module, section: ModelSection, kernels: str) -> None:
    """Of a loaded model. kernels: liger or none, as the plan says. Raises: UserError for a model without gradient
    checkpointing that is to have it.
    """
    from finetune.models.gated import recompute_gates
    from finetune.models.kernels import use_liger

    if section.gradient_checkpointing is True:
        _checkpoint_whole_layers(model)
    if kernels == "liger":
        use_liger(model)
    elif section.gradient_checkpointing is not True and section.compile == "none":
        recompute_gates(model)


def convert_layers(
    module: nn.Module,
    notify: Callable[[str], None],
    *,
    float8: str,
    checkpointing: bool | str,
    compiled: bool,
    accumulated: bool,
    emulate: bool,
) -> dict[str, str]:
    """Of a module in its engine, before it trains; returns facts about the run. Any rank may call it alone.

    notify: takes what was converted and compiled. float8: torchao's recipe, or none. checkpointing: true, false or light.
    accumulated: linear layers add up their gradients in products, as far as the engine lets them. emulate: round as float8 does
    and multiply in float32, on any device.

    Raises: UserError if the module has no layers for a way that is asked for.
    """
    from finetune.models.accumulated_products import convert_linears
    from finetune.models.compiled import compile_layers
    from finetune.models.float8 import use_float8
    from finetune.models.light_checkpointing import use_light_checkpointing

    facts = {}
    if float8 != "none":
        use_float8(module, float8, notify, emulate=emulate)
    if accumulated and not compiled:  # a compiler would trace whether a gradient is there
        convert_linears(module)
    if checkpointing == "light":
        light = use_light_checkpointing(module)
        facts["computed again"] = ", ".join(f"{count} {kind}" for kind, count in light.outputs.items())
    if compiled:
        compile_layers(module, notify)
    return facts


def _checkpoint_whole_layers(model: Any) -> None:
    config = model.config
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise UserError(
            f"a {config.model_type} model has no gradient checkpointing",
            remedy="Set model.gradient_checkpointing: false, and a smaller parallel.micro_batch if memory is short.",
        )
    # transformers 5.17 knows the older name alone, which later versions are to drop.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    if hasattr(config, "use_cache"):
        config.use_cache = False
