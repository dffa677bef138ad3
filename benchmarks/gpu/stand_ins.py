"""Stand-ins for what runs on a GPU alone: Liger's kernels, those of both loss heads, flash attention. They have the signatures
and the memory of the originals (liger-kernel 0.8.5, TRL 1.16), count one launch with what it reads and writes, and compute
nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.autograd import Function

from benchmarks.gpu.operator_costs import kernel, wait

MULTIPROCESSORS = 132  # of an H100: rows of partial sums of a norm's gradient
TRL_ROWS, TRL_COLUMNS = 4096, 32_768  # of a tile of TRL's head


class Norm(Function):
    """liger_kernel.ops.rms_norm: the gradient of the input is written over the incoming one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        y, spread = torch.empty_like(x), torch.empty(x.shape[:-1], dtype=torch.float32)
        kernel("rms_norm", reads=[x, weight], writes=[y, spread])
        ctx.save_for_backward(x, weight, spread)
        return y

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> Any:  # type: ignore[override]
        x, weight, spread = ctx.saved_tensors
        incoming = incoming.contiguous()
        partial = torch.empty(MULTIPROCESSORS, len(weight), dtype=torch.float32)
        kernel("rms_norm_backward", reads=[incoming, x, weight, spread], writes=[incoming, partial])
        of_weight = partial.sum(dim=0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        return incoming, of_weight


class GatedProduct(Function):
    """liger_kernel.ops.swiglu: gradients are written over the saved factors."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:  # type: ignore[override]
        product = torch.empty_like(gate)
        kernel("swiglu", reads=[gate, up], writes=[product])
        ctx.save_for_backward(gate, up)
        return product

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> Any:  # type: ignore[override]
        gate, up = ctx.saved_tensors
        kernel("swiglu_backward", reads=[incoming.contiguous(), gate, up], writes=[gate, up])
        return gate.detach(), up.detach()


class Rotary(Function):
    """liger_kernel.ops.rope: in place, on what lies as [batch, tokens, heads, size]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:  # type: ignore[override]
        ctx.save_for_backward(cos, sin)
        return Rotary._turn(q, k, cos, sin)

    @staticmethod
    def backward(ctx: Any, dq: Tensor, dk: Tensor) -> Any:  # type: ignore[override]
        return (*Rotary._turn(dq, dk, *ctx.saved_tensors), None, None)

    @staticmethod
    def _turn(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        q, k = (x.transpose(1, 2).contiguous() for x in (q, k))
        kernel("rope", reads=[q, k, cos, sin], writes=[q, k])
        return q.transpose(1, 2), k.transpose(1, 2)


class Attention(Function):
    """A flash kernel: causal halves its products, and its backward pass has five for the two of the forward pass."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:  # type: ignore[override]
        out, spread = torch.empty_like(q), torch.empty(q.shape[:-1], dtype=torch.float32)
        rows, heads, length, size = q.shape
        ctx.flops = 4 * rows * heads * length * k.shape[2] * size // (2 if causal else 1)
        kernel("attention", reads=[q, k, v], writes=[out, spread], flops=ctx.flops)
        ctx.save_for_backward(q, k, v, out, spread)
        return out

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> Any:  # type: ignore[override]
        saved = ctx.saved_tensors
        gradients = [torch.empty_like(x) for x in saved[:3]]
        kernel("attention_backward", reads=[incoming, *saved], writes=gradients, flops=ctx.flops * 5 // 2)
        return (*gradients, None)


def attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, *_: Any, **options: Any) -> Tensor:
    """In place of torch.nn.functional.scaled_dot_product_attention, for kernels that take fewer heads of keys."""
    if attn_mask is not None:
        raise NotImplementedError("attention with a mask is not estimated")
    out: Tensor = Attention.apply(query, key, value, bool(options.get("is_causal", False)))
    return out


class LigerHead(Function):
    """liger_kernel.ops.fused_linear_cross_entropy: gradients in the forward pass, in chunks of few rows."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:  # type: ignore[override]
        rows, width = hidden.shape
        factor = -(-len(weight) // width)
        chunk = min(rows, 1 << (-(-rows // factor) - 1).bit_length())
        d_hidden = torch.zeros_like(hidden)
        d_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        losses = torch.zeros(rows, dtype=torch.float32)
        wait("Liger's head: number of targets")
        storage = torch.empty(chunk, len(weight), dtype=hidden.dtype)
        for start in range(0, rows, chunk):
            part = hidden[start : start + chunk]
            logits = torch.mm(part, weight.t(), out=storage[: len(part)])
            kernel("head: losses and gradients", reads=[logits, logits], writes=[logits, losses[start : start + chunk]])
            torch.mm(logits, weight, out=d_hidden[start : start + chunk])
            if d_weight is not None:
                d_weight.addmm_(logits.t(), part)
        ctx.gradients = d_hidden, d_weight
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> Any:  # type: ignore[override]
        wait("Liger's head: is the incoming gradient 1")
        for gradient in ctx.gradients:
            if gradient is not None:
                kernel("head: factor", reads=[gradient], writes=[gradient])
        return (*ctx.gradients, None)


class TrlHead(Function):
    """trl.kernels.ChunkedLogProbFunction: tiles, computed again in the backward pass, gradients added up in float32."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(hidden, weight, targets)
        found = torch.zeros(len(hidden), dtype=torch.float32)
        for rows, columns, tile in _tiles(hidden, weight):
            torch.mm(hidden[rows], weight[columns].t(), out=tile)
            kernel("head: log-probabilities", reads=[tile, targets[rows]], writes=[found[rows]] * 7)
        return found

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> Any:  # type: ignore[override]
        hidden, weight, targets = ctx.saved_tensors
        d_hidden = torch.zeros(hidden.shape, dtype=torch.float32)
        d_weight = torch.zeros(weight.shape, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for rows, columns, tile in _tiles(hidden, weight):
            torch.mm(hidden[rows], weight[columns].t(), out=tile)
            kernel("head: gradients", reads=[tile, targets[rows]], writes=[tile])
            _add_product(d_hidden[rows], tile, weight[columns])
            if d_weight is not None:
                _add_product(d_weight[columns], tile.t(), hidden[rows])
        return d_hidden.to(hidden.dtype), None if d_weight is None else d_weight.to(weight.dtype), None


def _tiles(hidden: Tensor, weight: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    buffer = torch.empty(min(len(hidden), TRL_ROWS), TRL_COLUMNS, dtype=hidden.dtype)
    for start in range(0, len(hidden), TRL_ROWS):
        rows = slice(start, min(start + TRL_ROWS, len(hidden)))
        for first in range(0, len(weight), TRL_COLUMNS):
            columns = slice(first, min(first + TRL_COLUMNS, len(weight)))
            yield rows, columns, buffer[: rows.stop - rows.start, : columns.stop - columns.start]


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """torch.addmm(total, left, right, out_dtype=float32, out=total), which a CPU's torch does not have."""
    flops = 2 * left.shape[0] * left.shape[1] * right.shape[1]
    kernel("addmm_", reads=[total, left, right], writes=[total], flops=flops)


def _loss_gradients(logits: Tensor, target_ids: Tensor, losses: Tensor) -> None:
    kernel("head: losses and gradients", reads=[logits, logits, target_ids], writes=[logits, losses])


def _multiply(tensor: Tensor, factor: Tensor) -> None:
    kernel("head: factor", reads=[tensor, factor], writes=[tensor])


OUR_KERNELS = SimpleNamespace(
    SUPPORTED=(torch.bfloat16, torch.float16), turn_into_loss_gradients=_loss_gradients, multiply_in_place=_multiply
)
"""In place of finetune.models.softmax_kernels, as far as the sum of losses in bf16 needs them."""


def _update(
    target: Tensor, gradient: Tensor, weight: Tensor | None, scalars: Tensor, state: dict[str, Tensor], group: Any
) -> None:
    held = [target, *(values for name, values in state.items() if name != "step")]
    kernel("update", reads=[gradient, scalars, *held], writes=held if weight is None else [*held, weight])


OUR_UPDATES = SimpleNamespace(adamw=_update)
"""In place of finetune.models.update_kernels."""


def use_liger_layers(model: nn.Module) -> None:
    """What liger-kernel patches of a Llama, beside the rotary embeddings (`on_a_gpu`)."""
    for module in model.modules():
        kind = type(module).__name__
        if kind.endswith("RMSNorm"):
            module.forward = MethodType(_norm, module)
        elif kind.endswith("MLP"):
            module.forward = MethodType(_gated, module)


def _norm(self: Any, x: Tensor) -> Any:
    return Norm.apply(x, self.weight)


_norm.__module__ = "liger_kernel.stand_in"  # by which light checkpointing knows norms that keep their input


def _gated(self: Any, x: Tensor) -> Any:
    return self.down_proj(GatedProduct.apply(self.gate_proj(x), self.up_proj(x)))


@contextmanager
def on_a_gpu() -> Iterator[None]:
    """Within, our code takes the ways that it takes on a GPU, with tensors of a CPU (a build of torch for CPUs has no gradients
    on others), and attention and rotary embeddings of Llama are stand-ins.
    """
    import transformers.models.llama.modeling_llama as llama

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Any:
        return Rotary.apply(q, k, cos, sin)

    always: Callable[..., bool] = lambda *_: True  # noqa: E731
    patches: list[Any] = [
        mock.patch.object(llama, "apply_rotary_pos_emb", functools.wraps(llama.apply_rotary_pos_emb)(rotate)),
        mock.patch("torch.nn.functional.scaled_dot_product_attention", attend),
        mock.patch("transformers.masking_utils.find_packed_sequence_indices", lambda *_, **__: None),
        mock.patch("finetune.models.linear_loss._is_on_gpu", always),
        mock.patch("finetune.models.linear_loss._load_kernels", lambda: OUR_KERNELS),
        mock.patch("finetune.models.attention_kernels.is_on_gpu", always),
        mock.patch("finetune.models.segmented._has_ampere", always),
        mock.patch("finetune.distributed.engines.one_pass._is_on_gpu", always),
        mock.patch("finetune.distributed.engines.one_pass._load_kernels", lambda: OUR_UPDATES),
        mock.patch("finetune.distributed.gradient_norm._CHUNK", 1 << 40),  # a GPU needs no copies, and so no portions
        mock.patch("torch.nn.utils.clip_grad._has_foreach_support", always),
    ]
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield
