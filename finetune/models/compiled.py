"""torch.compile of a model's repeated layers ("regional compilation"): one graph serves all layers of a class.

transformers marks the layers of its models as `GradientCheckpointingLayer`. Their class is replaced by a subclass of the
same name whose forward pass is compiled, so modules, weights, hooks and names in a state dict stay as they are. Shapes are
dynamic from the start. Only passes that train are compiled: without gradients, or in evaluation mode, a layer computes as
it always does, so that evaluations and predictions do not depend on it.

Dropout draws the same random numbers as without compilation. What differs is rounding: fused operators keep intermediate
results in registers, and reductions add up in another order.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from finetune.errors import UserError
from finetune.models.repeated_layers import kind_of, repeated_layers
from finetune.models.segmented import leave_attention_uncompiled
from finetune.units import format_seconds

Notify = Callable[[str], None]
Backend = Callable[..., Any]
"""(graph, example inputs) -> callable, as torch.compile takes it."""

KEY = "model.compile"
MOST_GRAPHS = 32  # of all layers; a model needs 1 to 12, and each takes seconds


class CompiledLayers:
    """The compiled layers of one model.

    layers: {name of their class: how many}. graphs: compiled so far. seconds: spent on it. fallback: why the layers are
    computed as without compilation from now on; "" while they are compiled.
    """

    def __init__(self, backend: Backend, notify: Notify) -> None:
        self.layers: Counter[str] = Counter()
        self.graphs, self.seconds, self.fallback = 0, 0.0, ""
        self._backend, self._notify = backend, notify

    def replace(self, layer: nn.Module, classes: dict[type, type]) -> None:
        """Give `layer` a class whose forward pass is compiled. classes: those made so far, by the layers' own."""
        kind = type(layer)
        if kind not in classes:
            classes[kind] = self._subclass(kind)
        layer.__class__ = classes[kind]
        self.layers[kind.__name__] += 1

    def _subclass(self, kind: Any) -> type:
        plain = kind.forward
        compiled = torch.compile(plain, dynamic=True, backend=self._compile_graph)

        def forward(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if self.fallback or not layer.training or not torch.is_grad_enabled():
                return plain(layer, *args, **kwargs)
            return self._run(compiled, plain, layer, args, kwargs)

        names = {"forward": forward, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
        return type(kind.__name__, (kind,), names)

    def _run(self, compiled: Any, plain: Any, layer: nn.Module, args: Any, kwargs: Any) -> Any:
        from torch._dynamo.exc import TorchDynamoException

        before, started = self.graphs, time.perf_counter()
        try:
            result = compiled(layer, *args, **kwargs)
        except TorchDynamoException as error:  # of the compiler; an error of the layer itself has its own class
            self._give_up(_first_line(error))
            return plain(layer, *args, **kwargs)
        if self.graphs > before:
            self._note(type(layer).__name__, self.graphs - before, time.perf_counter() - started)
        return result

    def _compile_graph(self, graph: Any, examples: Any, **options: Any) -> Any:
        if self.fallback:
            return graph.forward
        self.graphs += 1
        if self.graphs > MOST_GRAPHS:
            self._give_up(f"more than {MOST_GRAPHS} graphs: the layers are called in ever new ways")
            return graph.forward
        return self._backend(graph, examples, **options)

    def _note(self, name: str, graphs: int, seconds: float) -> None:
        first, self.seconds = not self.seconds, self.seconds + seconds
        if self.fallback:
            return
        self._notify(
            f"{KEY}: compiled {graphs} graph{'s' * (graphs > 1)} of {name} for {self.layers[name]} layers in "
            f"{format_seconds(seconds)}" + ("" if first else f"; {self.graphs} in all")
        )

    def _give_up(self, reason: str) -> None:
        self.fallback = reason
        self._notify(f"{KEY}: the layers are not compiled from here on, and computed as with none: {reason}")


def compile_layers(model: nn.Module, notify: Notify, *, backend: Backend | None = None) -> CompiledLayers:
    """Compile the repeated layers of `model`, each at its first pass that trains. Any rank may call it alone.

    notify: takes a line for each compilation, with its time, and one if it is given up. backend: None: inductor.

    Raises: UserError if transformers marks no layers of the model.
    """
    layers = [layer for layer in repeated_layers(model) if "forward" not in vars(layer)]  # another's forward pass stays
    if not layers:
        raise UserError(
            f"a {kind_of(model)} model has no repeated layers that transformers marks as such",
            where=KEY,
            remedy=f"Set {KEY}: none.",
        )
    _configure()
    leave_attention_uncompiled()
    compiled = CompiledLayers(backend or torch._dynamo.lookup_backend("inductor"), notify)
    classes: dict[type, type] = {}
    for layer in layers:
        compiled.replace(layer, classes)
    kinds = ", ".join(f"{count} {name}" for name, count in compiled.layers.items())
    notify(f"{KEY}: {kinds} are compiled when they first train, and again for another kind of shape or mask")
    return compiled


def _configure() -> None:
    """Of this process. No limit of torch's own below ours; numbers of layers as constants, which saves a compilation; eager
    mode's random numbers; backward passes compiled with their forward pass, so that the time is known, and an error is met
    where it can be answered. A version of torch without one of these settings does as it does.
    """
    import torch._dynamo.config as dynamo
    import torch._functorch.config as functorch
    import torch._inductor.config as inductor

    dynamo.recompile_limit = max(dynamo.recompile_limit, 2 * MOST_GRAPHS)
    dynamo.optimize_ddp = False  # a layer is smaller than what DDP's buckets would cut it into
    for config, name, value in (
        (dynamo, "specialize_float", True),
        (functorch, "force_non_lazy_backward_lowering", True),
        (inductor, "fallback_random", True),
    ):
        if hasattr(config, name):
            setattr(config, name, value)


def _first_line(error: BaseException) -> str:
    error = getattr(error, "inner_exception", error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
