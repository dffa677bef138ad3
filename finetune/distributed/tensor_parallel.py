"""Matrices split over the ranks of a replica (DeepSpeed AutoTP): which slice a rank holds, and how to gather the whole.

The model's own plan says what is sliced: attention and feed-forward matrices by rows (queries, keys, values, gate, up;
the output head, where it is not tied) or by columns (attention's output, down). Norms, embeddings and a tied head are
whole on every rank, computed alike by all, and counted once. A slice is a plain tensor; DeepSpeed notes on the
parameter which one it is.

Ranks of a replica draw the same random numbers, so dropout of whole activations is the same on all of them. Dropout
inside sliced layers (attention weights) draws a slice's worth for each rank: a valid mask, but not that of one process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from finetune.errors import UserError

_SLICING = "ds_autotp_universal_checkpoint_meta"  # where DeepSpeed writes how it sliced a parameter


@dataclass(frozen=True)
class Slice:
    """Rows (dim 0) or columns (dim 1) [start, start + sizes[index]) of a tensor of `shape`, cut into `sizes`."""

    shape: tuple[int, ...]
    dim: int
    sizes: tuple[int, ...]
    index: int

    @property
    def start(self) -> int:
        return sum(self.sizes[: self.index])

    @property
    def columns(self) -> tuple[int, int] | None:
        """First column and the one after the last; None for rows, which are a range of the flattened whole."""
        return (self.start, self.start + self.sizes[self.index]) if self.dim == 1 else None

    @property
    def first_element(self) -> int:
        """Where a slice of rows begins in the flattened whole; 0 for columns."""
        row = self.shape[1] if len(self.shape) == 2 else 1
        return self.start * row if self.dim == 0 else 0


def slice_of(parameter: Any) -> Slice | None:
    """How the parameter was sliced; None if every rank has it whole.

    Raises: RuntimeError for a layout that is neither rows nor columns of a matrix (the plan refuses such models).
    """
    how = getattr(parameter, _SLICING, None)
    if how is None or how["replicated"]:
        return None
    shape, dim, sizes = how["logical_shape"], how["partition_dim"], how["partition_sizes"]
    if how["sub_param_shape"] or dim not in (0, 1) or not sizes or not 1 <= len(shape) <= 2 or dim >= len(shape):
        raise RuntimeError(f"a parameter of shape {shape} is sliced in a way that cannot be gathered: {how}")
    return Slice(tuple(shape), dim, tuple(sizes), dist.get_rank(_group()))


def whole_shape(parameter: Any) -> tuple[int, ...]:
    """Of the parameter that this rank may hold a slice or a shard of."""
    sliced = slice_of(parameter)
    return sliced.shape if sliced else tuple(getattr(parameter, "ds_shape", parameter.shape))


def gather_slices(parameter: torch.Tensor) -> torch.Tensor:
    """The whole parameter, a new tensor. All ranks of a replica call it; the engine's memory stays as it is."""
    sliced = slice_of(parameter)
    own = parameter.detach()
    if sliced is None:
        return own.clone()
    widest = list(own.shape)
    widest[sliced.dim] = max(sliced.sizes)
    padded = own.new_zeros(widest)
    padded.narrow(sliced.dim, 0, own.shape[sliced.dim]).copy_(own)
    received = [torch.empty_like(padded) for _ in sliced.sizes]
    dist.all_gather(received, padded, group=_group())
    parts = [part.narrow(sliced.dim, 0, size) for part, size in zip(received, sliced.sizes, strict=True)]
    return torch.cat(parts, dim=sliced.dim)


def check_frozen(module: Any) -> None:
    """Call it before DeepSpeed slices: it sums the gradients of norms of heads over ranks, so they must have gradients.

    Raises: UserError naming a frozen one. Any rank may call it.
    """
    plan = getattr(module.config, "base_model_tp_plan", None) or {}
    summed = {
        pattern.rpartition(".")[2] for pattern, style in plan.items() if style == "replicated_with_grad_allreduce"
    }
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad and name.split(".")[-2] in summed:
            raise UserError(
                f"{name} is frozen, but DeepSpeed's slicing needs its gradient",
                where="model.freeze",
                remedy="Leave norms of heads out of model.freeze, or set parallel.tensor: 1.",
            )


def check_slices(module: nn.Module) -> None:
    """Refuse a model that would train to other numbers. Any rank may call it, after DeepSpeed has sliced.

    Between slices by rows and slices by columns each rank has some heads only, and a parameter that is whole there sees
    a part of its gradient, unless the plan says that it is summed (norms of heads).
    Raises: UserError naming such a parameter, or if nothing was sliced.
    """
    from deepspeed.module_inject.layers import LinearAllreduce

    blocks = [block for block in module.modules() if any(type(part) is LinearAllreduce for part in block.children())]
    if not blocks:
        raise UserError("DeepSpeed found no layer of this model to slice", where="parallel.tensor", remedy=_REMEDY)
    inside = {id(parameter) for block in blocks for parameter in block.parameters() if parameter.requires_grad}
    for name, parameter in module.named_parameters():
        known = hasattr(parameter, _SLICING) or hasattr(parameter, "_ds_grad_allreduce_registered")
        if id(parameter) in inside and not known:
            raise UserError(
                f"{name} stays whole between layers that are sliced: its gradient would be a part of the true one",
                where="parallel.tensor",
                remedy=_REMEDY,
            )


_REMEDY = "Set parallel.tensor: 1 and use parallel.deepspeed: zero3 for what one GPU cannot hold."


def join_input_gradients(module: nn.Module) -> int:
    """Sum the gradients of what attention and feed-forward read once, instead of once for each matrix that reads it.

    DeepSpeed all-reduces the gradient of every sliced layer's input by itself: five times a layer, where the sum of the
    three (queries, keys, values), and of the two (gate, up), is all that is needed. The numbers are the same to rounding.
    Only where these matrices are the only readers; others keep DeepSpeed's way. Returns the number of blocks joined.
    """
    from deepspeed.module_inject.layers import LinearLayer

    joined = 0
    for block in module.modules():
        own = {name: child for name, child in block.named_children() if any(True for _ in child.parameters())}
        readers = next((names for names, others in _READERS if names <= own.keys() <= names | others), ())
        layers: list[Any] = [own[name] for name in readers]
        if not layers or any(type(layer) is not LinearLayer or layer.gather_output for layer in layers):
            continue
        for layer in layers:
            layer.mp_group = None  # which it asks before it reduces; it has its slice already
        block.register_forward_pre_hook(_reduce_once, with_kwargs=True)
        joined += 1
    return joined


_READERS = (  # matrices that read a block's input, and what else may be in the block
    ({"q_proj", "k_proj", "v_proj"}, {"o_proj", "q_norm", "k_norm"}),
    ({"gate_proj", "up_proj"}, {"down_proj"}),
)


def _reduce_once(block: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
    """What the block reads, its first argument or `hidden_states`: unchanged forward, its gradient summed over ranks."""
    from deepspeed.module_inject.layers import ColumnParallel

    if arguments:
        return (ColumnParallel.apply(_group(), arguments[0]), *arguments[1:]), named
    return arguments, {**named, "hidden_states": ColumnParallel.apply(_group(), named["hidden_states"])}


def _group() -> Any:
    """The ranks of this replica."""
    from deepspeed.utils import groups

    return groups.get_tensor_model_parallel_group()
