"""Parts of a training step alone, on one GPU, in half a minute: attention, the update, the loss head, products, copies.

python -m benchmarks.gpu.kernels [--only attention]

Prints a line per way as it goes, medians of seven runs by the device's clock: which way a step should take, and what it
can reach at best. Shapes are those of a Llama of 1.24B parameters (hidden 2,048, 16 layers, vocabulary 128,256).
"""

from __future__ import annotations

import argparse
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

HIDDEN, INNER, LAYERS, VOCABULARY = 2048, 8192, 16, 128_256
RUNS = 7
ATTENTIONS = [(4, 32, 8, 4096, 64), (2, 32, 8, 4096, 128), (33, 32, 8, 496, 64)]
"""Rows, heads, key-value heads, tokens, head size."""
PRODUCTS = [(8192, 8192, 8192), (4096, 2048, 8192), (16384, 2048, 8192), (16384, 8192, 2048), (16384, 2048, 512)]

Line = tuple[str, Callable[[], Any], float]
"""What it is, what runs, and its floating point operations (0: only its time is told)."""


def main() -> None:
    """See the head of the file."""
    parts: dict[str, Callable[[], Iterator[Line]]] = {
        "attention": attention, "update": update, "head": head, "products": products, "copies": copies
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(parts), default=[])
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("needs a CUDA GPU")
    for name in arguments.only or parts:
        for line, run, operations in parts[name]():
            print(f"{name:10} {line:44} {told(run, operations)}", flush=True)


def told(run: Callable[[], Any], operations: float) -> str:
    """Median milliseconds, rate and peak memory, or why it did not run."""
    try:
        run(), run()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        times = []
        for _ in range(RUNS):
            began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            began.record()
            run()
            ended.record()
            torch.cuda.synchronize()
            times.append(began.elapsed_time(ended))
    except (RuntimeError, TypeError) as error:
        return f"not run: {str(error).splitlines()[0][:110]}"
    middle = sorted(times)[RUNS // 2]
    rate = f"{operations / middle / 1e9:6.0f} TFLOP/s" if operations else ""
    return f"{middle:8.2f} ms {rate:14} peak {torch.cuda.max_memory_allocated() / 2**30:5.2f} GiB"


def attention() -> Iterator[Line]:
    """Forward and backward pass: torch's choice, each of its kernels, and packed rows of equal length."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.varlen import varlen_attn

    grouped: Any = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
    for rows, heads, groups, tokens, size in ATTENTIONS:
        operations = 3.5 * 4 * rows * heads * tokens * tokens * size / 2
        shape = f"{rows} x {tokens}, heads of {size}"
        query = _random(rows, tokens, heads, size)
        key, value = _random(rows, tokens, groups, size), _random(rows, tokens, groups, size)
        incoming = torch.randn_like(query)

        def batched(chosen: Any, inputs: Any = (query, key, value), incoming: Tensor = incoming) -> Any:
            with nullcontext() if chosen is None else sdpa_kernel(chosen):
                out = functional.scaled_dot_product_attention(
                    *(x.transpose(1, 2) for x in inputs), is_causal=True, enable_gqa=True
                )
            return torch.autograd.grad(out.transpose(1, 2), inputs, incoming)

        def packed(inputs: Any = (query, key, value), incoming: Tensor = incoming, tokens: int = tokens) -> Any:
            borders = torch.arange(0, len(incoming) * tokens + 1, tokens, device="cuda", dtype=torch.int32)
            rows = (x.flatten(0, 1) for x in inputs)
            out = varlen_attn(*rows, borders, borders, tokens, tokens, window_size=(-1, 0), **grouped)
            return torch.autograd.grad(out, inputs, incoming.flatten(0, 1))

        ways = {"torch's choice": None, "flash": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}
        for name, chosen in ways.items():
            yield f"{shape}: {name}", functools.partial(batched, chosen), operations
        yield f"{shape}: packed", packed, operations


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16, requires_grad=True)


def update() -> Iterator[Line]:
    """Norm, clipping, AdamW and masters over all parameters."""
    from finetune.distributed.gradient_norm import clip_to_norm, total_norm

    gates, attention = [(INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER)], [(HIDDEN, HIDDEN), (HIDDEN, HIDDEN)]
    layer = [*gates, *attention, (512, HIDDEN), (512, HIDDEN)]
    weights = [nn.Parameter(_random(*shape).detach() * 0.02) for shape in [(VOCABULARY, HIDDEN), *layer * LAYERS]]
    for weight in weights:
        weight.grad = torch.randn_like(weight) * 1e-3
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    norm = total_norm(gradients)
    yield "norm, as we take it (float64)", lambda: total_norm(gradients), 0.0
    yield "norm, torch's (float32)", lambda: torch.nn.utils.get_total_norm(gradients), 0.0
    yield "clipping to a norm", lambda: clip_to_norm(weights, 1.0, norm), 0.0
    yield "one sum of all gradients", lambda: torch._foreach_add_(gradients, gradients), 0.0
    half = torch.optim.AdamW(weights, lr=1e-5, fused=True)
    yield "AdamW, bf16", half.step, 0.0
    half.state.clear()
    masters = [nn.Parameter(weight.detach().float()) for weight in weights]
    for master, gradient in zip(masters, gradients, strict=True):
        master.grad = gradient.float()
    yield "AdamW, float32 masters", torch.optim.AdamW(masters, lr=1e-5, fused=True).step, 0.0
    yield "update of bf16 weights with masters, in one pass", _update_in_one_pass(weights, gradients, norm), 0.0
    plain = [weight.detach() for weight in weights]
    yield "masters to bf16", lambda: torch._foreach_copy_(plain, [master.detach() for master in masters]), 0.0
    table, tokens = weights[0], torch.randint(0, VOCABULARY, (1, 16384), device="cuda")
    incoming = torch.randn(1, 16384, HIDDEN, device="cuda", dtype=torch.bfloat16)

    def embed() -> Any:
        return torch.autograd.grad(functional.embedding(tokens, table), table, incoming)

    yield "embedding of 16,384 tokens, both passes", embed, 0.0


def _update_in_one_pass(weights: list[nn.Parameter], gradients: list[Tensor], norm: Tensor) -> Any:
    """Clipping, AdamW and masters, by kernels."""
    from finetune.distributed.engines.one_pass import one_pass_of
    from finetune.distributed.gradient_norm import clip_factor
    from finetune.recipe.optimizers import OPTIMIZERS
    from finetune.recipe.training import TrainingSection

    masters = [nn.Parameter(weight.detach().float()) for weight in weights]
    training = TrainingSection(learning_rate=1e-5, global_batch=1, epochs=1)
    way = one_pass_of(OPTIMIZERS["adamw"].make([{"params": masters}], training))
    assert way is not None
    return lambda: way.step(list(zip(masters, gradients, weights, strict=True)), clip_factor(1.0, norm))


def head() -> Iterator[Line]:
    """The loss head with other chunks."""
    from finetune.models import summed_loss
    from finetune.models.linear_loss import LogitTransform, linear_loss_sum, linear_losses, sum_losses

    weight = (_random(VOCABULARY, HIDDEN).detach() * 0.02).requires_grad_()
    usual = summed_loss.CHUNK_BYTES
    for rows in (4096, 8192, 16384):
        hidden, targets = _random(rows, HIDDEN), torch.randint(0, VOCABULARY, (rows,), device="cuda")
        operations = 3 * 2.0 * rows * VOCABULARY * HIDDEN

        def summed(chunk: int, hidden: Tensor = hidden, targets: Tensor = targets) -> None:
            hidden.grad = weight.grad = None
            summed_loss.CHUNK_BYTES = chunk
            linear_loss_sum(hidden, weight, None, targets, LogitTransform()).backward()
            summed_loss.CHUNK_BYTES = usual

        def again(hidden: Tensor = hidden, targets: Tensor = targets) -> None:
            hidden.grad = weight.grad = None
            sum_losses(linear_losses(hidden, weight, None, targets, LogitTransform())).backward()

        for mebibytes in (256, 512, 1024):
            yield f"{rows} rows, {mebibytes} MiB", functools.partial(summed, mebibytes * 2**20), operations
        yield f"{rows} rows, logits again", again, operations


def products() -> Iterator[Line]:
    """A linear layer's three products."""
    for rows, width, out in PRODUCTS:
        x, weight, incoming = _random(rows, width).detach(), _random(out, width).detach(), _random(rows, out).detach()
        operations = 2.0 * rows * width * out
        shape = f"{rows} x {width} -> {out}"
        yield f"{shape}: forward", functools.partial(torch.mm, x, weight.T), operations
        yield f"{shape}: of the input", functools.partial(torch.mm, incoming, weight), operations
        yield f"{shape}: of the weight", functools.partial(torch.mm, incoming.T, x), operations


def copies() -> Iterator[Line]:
    """1 GiB within the device, and from and to the host."""
    device, other = (torch.empty(2**30, dtype=torch.uint8, device="cuda") for _ in range(2))
    pinned, pageable = torch.empty(2**30, dtype=torch.uint8, pin_memory=True), torch.empty(2**30, dtype=torch.uint8)
    yield "1 GiB within the device", lambda: other.copy_(device), 0.0
    yield "1 GiB to the device, pinned", lambda: device.copy_(pinned, non_blocking=True), 0.0
    yield "1 GiB to the host, pinned", lambda: pinned.copy_(device, non_blocking=True), 0.0
    yield "1 GiB to the device, pageable", lambda: device.copy_(pageable), 0.0
    yield "1 GiB to the host, pageable", lambda: pageable.copy_(device), 0.0


if __name__ == "__main__":
    main()
