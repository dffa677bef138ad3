"""Light checkpointing: what a layer keeps for the backward pass, but can compute again without a matrix product, is not kept.

That is the output of an activation function, of a norm and of a gated product, act(gate(x)) * up(x): each is a function of
tensors that are kept anyway, and most of the memory of a layer beside the results of its matrix products. The backward pass
computes it again when it is asked for, with the same operators from the same tensors: the same numbers to the last bit, for
one pass over the tensor. Full checkpointing saves more, and runs the whole forward pass again.

While a layer runs, autograd asks for every tensor that it saves (`torch.autograd.graph.saved_tensors_hooks`). Where it is
one of these outputs, it gets a recipe to make it instead. Whatever an engine, an adapter or fused kernels made of the
layers, they save what their modules give them, so that nothing here knows of them.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from finetune.errors import UserError
from finetune.models.gated import is_gated_product
from finetune.models.repeated_layers import kind_of, repeated_layers

KEY = "model.gradient_checkpointing"
_GATED = ("gate_proj", "up_proj", "down_proj")
_VIEWS = ("View", "UnsafeView", "ReshapeAlias", "Alias", "Squeeze", "Unsqueeze", "Select", "Transpose", "T", "Permute")


class LightCheckpointing:
    """Of one model. outputs: how many there are of each kind in all layers: {"norms": 33, "gated products": 16}. dropped: how
    many saved tensors were not kept so far.
    """

    def __init__(self) -> None:
        self.outputs: Counter[str] = Counter()
        self.dropped = 0
        self._sources: dict[int, _Source] = {}  # by the address of the storage, of outputs that are alive
        self._open: list[saved_tensors_hooks] = []  # of the layers that are running, the innermost last
        self._watched: set[nn.Module] = set()

    def watch_layer(self, layer: nn.Module) -> None:
        """Everything that runs inside."""
        layer.register_forward_pre_hook(self._enter)
        layer.register_forward_hook(self._leave, always_call=True)
        for module in layer.modules():
            if module in self._watched:  # by a layer around this one
                continue
            self._watched.add(module)
            if is_gated_product(module):
                self.outputs["gated products"] += 1
                self._watch_gated(module)
            elif _is_cheap(module):
                self.outputs["norms" if _has_weights(module) else "activations"] += 1
                module.register_forward_hook(self._after)

    def _enter(self, layer: nn.Module, args: Any) -> None:
        hooks = saved_tensors_hooks(self._pack, _unpack)
        hooks.__enter__()
        self._open.append(hooks)

    def _leave(self, layer: nn.Module, args: Any, outputs: Any) -> None:
        self._open.pop().__exit__(None, None, None)

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        """A norm or an activation has run."""
        if len(args) == 1 and isinstance(args[0], Tensor) and not _is_sharded(module):
            self._note(output, module.forward, args[0].detach())

    def _watch_gated(self, layer: Any) -> None:
        gate, up, down = (getattr(layer, name) for name in _GATED)
        held: dict[str, Tensor] = {}

        def keep(name: str, module: nn.Module, args: Any, output: Tensor) -> None:
            if self._open and torch.is_grad_enabled():
                held[name] = output.detach()

        def before_down(module: nn.Module, args: Any) -> None:
            if len(held) == 2 and args:
                self._note(args[0], partial(_gated_product, layer), held["gate_proj"], held["up_proj"])
            held.clear()

        gate.register_forward_hook(partial(keep, "gate_proj"))
        up.register_forward_hook(partial(keep, "up_proj"))
        down.register_forward_pre_hook(before_down)

    def _note(self, output: Any, compute: Callable[..., Tensor], *inputs: Tensor) -> None:
        if not self._open or not torch.is_grad_enabled() or not isinstance(output, Tensor) or not output.requires_grad:
            return
        address = _address(output)
        forget = partial(_forget, weakref.ref(self), address)
        self._sources[address] = _Source(weakref.ref(output, forget), compute, inputs, _like_now(output.device.type))

    def _pack(self, tensor: Tensor) -> Any:
        source = self._sources.get(_address(tensor))
        output = None if source is None else source.output()
        if source is None or output is None or not _is_same(tensor, output):
            # An output that is saved for its own backward pass would hold itself through its history.
            return tensor if tensor.grad_fn is None else tensor.detach()
        self.dropped += 1
        source.uses += 1
        return _Again(source, tensor.shape)


class _Source:
    """An output that can be computed again. uses: how often it was saved; it is kept, once computed, until all have had it."""

    def __init__(
        self,
        output: weakref.ref[Tensor],
        compute: Callable[..., Tensor],
        inputs: tuple[Tensor, ...],
        mode: Callable[[], Any],
    ) -> None:
        self.output, self._compute, self._mode = output, compute, mode
        self._inputs, self._versions = inputs, [tensor._version for tensor in inputs]
        self.uses = 0
        self._computed: Tensor | None = None

    def value(self) -> Tensor:
        found = self._computed
        if found is None:
            if [tensor._version for tensor in self._inputs] != self._versions:
                raise RuntimeError(f"a tensor that {KEY}: light computes from was modified in place")
            with torch.no_grad(), self._mode():
                found = self._compute(*self._inputs)
        self.uses -= 1
        self._computed = found if self.uses > 0 else None
        return found


class _Again:
    """What autograd holds of an output: how to make it, and the shape that it was saved in."""

    def __init__(self, source: _Source, shape: torch.Size) -> None:
        self._source, self._shape = source, shape

    def value(self) -> Tensor:
        return self._source.value().view(self._shape)


def use_light_checkpointing(model: nn.Module) -> LightCheckpointing:
    """For the repeated layers of `model`, as it is trained: with its adapter, and in its engine.

    Raises: UserError if transformers marks no layers of the model, or nothing in them can be computed again.
    """
    light = LightCheckpointing()
    for layer in repeated_layers(model):
        light.watch_layer(layer)
    if not light.outputs:
        raise UserError(
            f"light: the layers of a {kind_of(model)} model keep nothing that could be computed again without a matrix product",
            where=KEY,
            remedy=f"Set {KEY}: true or false.",
        )
    return light


def _unpack(saved: Any) -> Tensor:
    found: Tensor = saved.value() if isinstance(saved, _Again) else saved
    return found


def _forget(owner: weakref.ref[LightCheckpointing], address: int, output: weakref.ref[Tensor]) -> None:
    """An output is gone: its address may be another tensor's next."""
    light = owner()
    if light is not None and (source := light._sources.get(address)) is not None and source.output is output:
        del light._sources[address]


def _address(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address


def _is_same(tensor: Tensor, output: Tensor) -> bool:
    """Whether `tensor` is `output`, or a view of all of it in the same order."""
    return (
        tensor.dtype == output.dtype
        and tensor.numel() == output.numel()
        and tensor.storage_offset() == output.storage_offset()
        and tensor.is_contiguous()
        and output.is_contiguous()
        and tensor._version == output._version
        and _is_view(tensor, output)
    )


def _is_view(tensor: Tensor, output: Tensor) -> bool:
    """Whether no operator but views lies between both: kernels may write into the memory of their input, unknown to torch, as
    liger-kernel's rotary embeddings do behind a norm. Inside a Function there is no history, and what is saved is its input.
    """
    node = tensor.grad_fn
    while node is not None and node is not output.grad_fn:
        if (
            len(node.next_functions) != 1
            or node.name().removesuffix("0").removesuffix("1").removesuffix("Backward") not in _VIEWS
        ):
            return False
        node = node.next_functions[0][0]
    return True


def _is_cheap(module: nn.Module) -> bool:
    """A norm that keeps its input and a few numbers per row, or an activation function."""
    if any(module.children()) or getattr(module, "inplace", False):
        return False
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return True
    if _has_weights(module):  # a norm written out in operators keeps more than its output; a fused one does not
        fused = getattr(vars(module).get("forward"), "__func__", None)
        return type(module).__name__.endswith("Norm") and getattr(fused, "__module__", "").startswith("liger_kernel")
    return type(module) in _activations()


@cache
def _activations() -> set[type]:
    from transformers.activations import ACT2CLS

    classes = (entry[0] if isinstance(entry, tuple) else entry for entry in ACT2CLS.values())
    return {kind for kind in classes if isinstance(kind, type) and not issubclass(kind, nn.Identity)}


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None


def _is_sharded(module: nn.Module) -> bool:
    """Whether ZeRO-3 holds its weights: they are not there when the backward pass asks."""
    return any(hasattr(parameter, "ds_id") for parameter in module.parameters(recurse=False))


def _gated_product(layer: Any, gate: Tensor, up: Tensor) -> Tensor:
    """What `layer` gives its down projection, by its own forward pass (fused or not), from what its projections gave."""
    attributes = vars(layer)
    answers = {"gate_proj": lambda x: gate, "up_proj": lambda x: up, "down_proj": lambda product: product}
    try:
        attributes.update(answers)  # in front of the modules of these names, whose hooks and weights stay out of it
        product: Tensor = layer.forward(gate)
    finally:
        for name in answers:
            del attributes[name]
    return product


def _like_now(device: str) -> Callable[[], Any]:
    """A context in which autocast is as it is now: the backward pass has none of its own."""
    if not torch.is_autocast_enabled(device):
        return nullcontext
    return partial(torch.autocast, device, torch.get_autocast_dtype(device))
