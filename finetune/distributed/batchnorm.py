"""BatchNorm over the whole global batch, exact on any number of ranks, on the CPU (gloo) and on CUDA alike.

torch's own SyncBatchNorm refuses CPU tensors, and has no ranks that take part without counting (dummy batches).
Letters: C channels; n_r, m_r, M_r rank r's count of positions, mean, and sum of squared deviations; N the sum of n_r.

Forward: each rank sends (m_r, M_r, n_r) in one all-gather. They combine as in Chan, Golub and LeVeque, "Updating
Formulae and a Pairwise Algorithm for Computing Sample Variances" (1979), without the cancellation that
sum(x^2) / N - mean^2 suffers where the mean is large:

    mean = sum_r n_r m_r / N        M = sum_r M_r + sum_r n_r (m_r - mean)^2        var = M / N

Backward, with x^ = (x - mean) / sqrt(var + eps) (Ioffe and Szegedy 2015, section 3), in one all-reduce of the two sums:

    dx = w / sqrt(var + eps) * (dy - [x counts] (sum dy + x^ sum(dy x^)) / N)        both sums over all ranks
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812 (the name that torch's own documentation uses)

from finetune.errors import UserError

_HALF = (torch.float16, torch.bfloat16)


class SyncedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """The behavior; its children below are what `convert_batchnorm` turns plain layers into. Input [batch, C, ...].

    In training all ranks must call forward, and backward if the input needs a gradient, equally often and in the same
    order; a rank without examples sends an empty or a dummy batch. In evaluation nothing is sent.
    """

    process_group: dist.ProcessGroup | None = None
    dummy: bool = False

    def forward(self, input: Tensor) -> Tensor:
        group, ranks = self.process_group, 1
        if dist.is_available() and dist.is_initialized():
            ranks = dist.get_world_size(group)
        if not self.training and self.running_mean is not None:
            return self._with_running_statistics(input)
        if not self.training or (ranks == 1 and not self.dummy):
            return super().forward(input)
        self._check_input_dim(input)
        mean, var, count = _global_statistics(input, self.dummy, group, ranks)
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            self._update(mean, var, count)
            nothing = count == 0  # dummies everywhere: the running statistics are the best there is
            mean = torch.where(nothing, self.running_mean.to(mean), mean)
            var = torch.where(nothing, self.running_var.to(var), var)
        share = torch.zeros_like(count) if self.dummy else 1 / count.clamp(min=1)
        return _Normalize.apply(input, self.weight, self.bias, mean, var, share, self.eps, group, ranks)

    def _with_running_statistics(self, input: Tensor) -> Tensor:
        """As torch does it, which refuses half-precision weights beside statistics in float32 (see `_apply`)."""
        self._check_input_dim(input)
        assert self.running_mean is not None
        weight, bias = (
            _widen(tensor) if tensor is not None and self.running_mean.dtype not in _HALF else tensor
            for tensor in (self.weight, self.bias)
        )
        return F.batch_norm(input, self.running_mean, self.running_var, weight, bias, False, 0.0, self.eps)

    @torch.no_grad()
    def _update(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Running statistics, on dummies too: they stay the same on all ranks. Never waits for the device."""
        assert self.running_mean is not None and self.running_var is not None
        counted = count > 0
        factor: Tensor | float = 0.0 if self.momentum is None else self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(counted.to(self.num_batches_tracked.dtype))
            if self.momentum is None:  # the plain average over all batches
                factor = 1 / self.num_batches_tracked.clamp(min=1).to(mean.dtype)
        unbiased = var * (count / (count - 1).clamp(min=1))
        for running, now in ((self.running_mean, mean), (self.running_var, unbiased)):
            old = running.to(now.dtype)
            running.copy_(torch.where(counted, old + factor * (now - old), old))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SyncedBatchNorm:
        """Move or cast, but keep the statistics in float32 at least: in bf16, small updates would be rounded away."""
        before = {name: self._buffers[name] for name in ("running_mean", "running_var")}
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype in _HALF:
                self._buffers[name] = _widen(old).to(new.device)
        return self


class SyncedBatchNorm1d(SyncedBatchNorm, nn.BatchNorm1d):
    """[batch, C] or [batch, C, length]."""


class SyncedBatchNorm2d(SyncedBatchNorm, nn.BatchNorm2d):
    """[batch, C, height, width]."""


class SyncedBatchNorm3d(SyncedBatchNorm, nn.BatchNorm3d):
    """[batch, C, depth, height, width]."""


_SYNCED: dict[type[nn.Module], type[SyncedBatchNorm]] = {
    nn.BatchNorm1d: SyncedBatchNorm1d,
    nn.BatchNorm2d: SyncedBatchNorm2d,
    nn.BatchNorm3d: SyncedBatchNorm3d,
}


def convert_batchnorm(model: nn.Module, process_group: dist.ProcessGroup | None = None) -> nn.Module:
    """Synchronize every nn.BatchNorm1d, 2d and 3d of the model over the group (None: all ranks), in place.

    The modules stay the same objects, with their parameters, buffers, names and hooks. Call it on every rank, before
    Accelerate or DeepSpeed wraps the model. Returns the model, for chaining.

    Raises: UserError for a BatchNorm of another class, which would silently keep statistics of its own rank.
    """
    foreign = []
    for name, module in model.named_modules():
        if isinstance(module, SyncedBatchNorm):
            module.process_group = process_group
        elif synced := _SYNCED.get(type(module)):
            module.__class__ = synced
            module.process_group = process_group
            for buffer in ("running_mean", "running_var"):
                if module._buffers[buffer] is not None:
                    module._buffers[buffer] = _widen(module._buffers[buffer])
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            foreign.append(f"{name or '(the model itself)'}: {type(module).__name__}")
    if foreign:
        raise UserError(
            f"{len(foreign)} BatchNorm layers are of a class that cannot be synchronized over ranks ({foreign[0]})",
            where="model",
            remedy="Set model.batch_norm: frozen, or use a model with torch's own BatchNorm1d, 2d or 3d.",
        )
    return model


@contextmanager
def dummy_batch(model: nn.Module) -> Iterator[None]:
    """Within, this rank's forwards take part in the collectives but count nothing; other ranks' real batches do.

    The running statistics follow the ranks that count, so they stay equal everywhere; if all are dummies, they rest.
    Backward may run later, outside. The model may be wrapped (DDP, DeepSpeed engine).
    """
    layers = [module for module in model.modules() if isinstance(module, SyncedBatchNorm)]
    former = [layer.dummy for layer in layers]
    try:
        for layer in layers:
            layer.dummy = True
        yield
    finally:
        for layer, dummy in zip(layers, former, strict=True):
            layer.dummy = dummy


@torch.no_grad()
def _global_statistics(
    x: Tensor, dummy: bool, group: dist.ProcessGroup | None, ranks: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [C] and biased variance [C] in the statistics' type, and the count [] in float64, over all ranks."""
    channels = x.shape[1]
    count = 0 if dummy else x.numel() // max(channels, 1)
    # float64 on the wire: counts stay exact beyond 2^24 positions, and C numbers are cheap beside the activations.
    local = x.new_zeros(2 * channels + 1, dtype=torch.float64)
    if count:
        var, mean = torch.var_mean(x.to(_statistics_type(x)), dim=_all_but_channels(x), correction=0)
        local[:channels], local[channels:-1], local[-1] = mean, var.double() * count, count
    if ranks > 1:
        gathered = local.new_empty(ranks * local.numel())
        dist.all_gather_into_tensor(gathered, local, group=group)
    else:
        gathered = local
    means, squares, counts = gathered.view(ranks, -1).split([channels, channels, 1], dim=1)
    total = counts.sum()
    divisor = total.clamp(min=1)
    mean = (counts * means).sum(0) / divisor
    var = (squares.sum(0) + (counts * (means - mean).square()).sum(0)) / divisor
    var = torch.where(total > 0, var, torch.ones_like(var))  # nothing to normalize by, if no statistics are tracked
    kind = _statistics_type(x)
    return mean.to(kind), var.to(kind), total


class _Normalize(torch.autograd.Function):
    """y = (x - mean) / sqrt(var + eps) * weight + bias, with the gradient that also flows through mean and var.

    share []: 1 / N on a rank that counts, 0 on a dummy. Both passes use torch's evaluation kernels, which are fused and
    take half-precision x with float32 statistics.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        share: Tensor,
        eps: float,
        group: dist.ProcessGroup | None,
        ranks: int,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var, share)
        ctx.eps, ctx.group, ctx.ranks = eps, group, ranks
        ctx.bias_type = None if bias is None else bias.dtype
        return _scale(x, mean, var, weight, bias, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, share = ctx.saved_tensors
        kind, channels = mean.dtype, x.shape[1]
        scale = (var + ctx.eps).rsqrt()
        gain = torch.ones_like(mean) if weight is None else weight.to(kind)
        dy = grads[0]
        sums = mean.new_zeros(2, channels, dtype=torch.float64)  # of dy * x^, and of dy
        dx: Tensor = torch.empty_like(x)
        if x.numel():
            # As if mean and var were constants: dy * gain * scale, and this rank's two sums.
            # CUDA's kernels for channels that lie innermost ask for what a forward pass saved, if only to find it empty.
            saved = mean.new_empty(0) if x.is_cuda else None
            dx, *local = torch.ops.aten.native_batch_norm_backward(
                dy, x, gain, mean, var, saved, saved, False, ctx.eps, [True, True, True]
            )
            sums[0], sums[1] = local
        # Copies: the all-reduce below writes into sums, while these stay this rank's (DDP or DeepSpeed adds them up).
        d_weight = None if weight is None else sums[0].to(weight.dtype, copy=True)
        d_bias = None if ctx.bias_type is None else sums[1].to(ctx.bias_type, copy=True)
        if not ctx.needs_input_grad[0]:  # alike on all ranks: it follows from the model, not from the data
            return None, d_weight, d_bias, *[None] * 6
        if ctx.ranks > 1:
            dist.all_reduce(sums, group=ctx.group)
        # What flows through mean and var, x^ * slope + offset, is once more a BatchNorm with constant statistics.
        slope, offset = (-share * sums).to(kind) * gain * scale
        return dx + _scale(x, mean, var, slope, offset, ctx.eps), d_weight, d_bias, *[None] * 6


def _scale(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """BatchNorm of x with given statistics; all parameters in the statistics' type, as mixed-type kernels ask."""
    if not x.numel():
        return torch.empty_like(x)
    weight = None if weight is None else weight.to(mean.dtype)
    bias = None if bias is None else bias.to(mean.dtype)
    return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)


def _widen(statistics: Tensor) -> Tensor:
    return statistics.float() if statistics.dtype in _HALF else statistics


def _statistics_type(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _all_but_channels(x: Tensor) -> list[int]:
    return [dim for dim in range(x.dim()) if dim != 1]
