"""Counts what operators ask of a GPU, and turns it into an estimate of their time; nothing runs, and no GPU is needed.

Of each operator: launches, bytes read and written, floating point operations. Its time is the largest of what memory, tensor
cores and a launch would take. That is a lower bound in one way (caches and tails of waves are ignored) and an upper bound in
another (what runs side by side is added up): differences between two sides say more than the sums.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.counting import UNCOUNTED, Count

OVERWRITTEN = ("copy_", "zero_", "fill_")  # in place, without reading what was there
PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "baddbmm")
ROWS_READ = ("embedding", "index_select", "index", "gather")  # of their first argument, as many as are asked for


@dataclass(frozen=True)
class Device:
    """What a GPU reaches: bytes and operations per second, seconds that a launch takes at least."""

    bandwidth: float
    product_flops: float
    attention_flops: float
    launch: float

    def seconds(self, line: Line) -> float:
        """Of one kind of operator, all calls together, each of which is bound by the same."""
        rate = self.attention_flops if "attention" in line.name else self.product_flops
        return max(line.bytes / self.bandwidth, line.flops / rate, line.launches * self.launch)


H100 = Device(bandwidth=0.85 * 3.35e12, product_flops=0.70 * 989e12, attention_flops=0.50 * 989e12, launch=5e-6)


@dataclass
class Line:
    """Calls of one operator on one shape."""

    name: str
    launches: int = 0
    bytes: int = 0
    flops: int = 0

    def add(self, other: Line, times: int = 1) -> None:
        self.launches += times * other.launches
        self.bytes += times * other.bytes
        self.flops += times * other.flops


class Costs(Count):
    """Within: `lines`, by operator and size, so that each is bound by one thing; `waits`, places where the host would wait.

    Inherits live and peak bytes. Kernels that torch does not know are told by `kernel`.
    """

    active: list[Costs] = []  # noqa: RUF012 (one of the process, as modes of torch are)

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[tuple[str, int, int], Line] = {}
        self.waits: Counter[str] = Counter()

    def __enter__(self) -> Costs:
        Costs.active.append(self)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        Costs.active.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.hold(*made)
        name = func.overloadpacket.__name__
        if func.namespace != "prim" and not func.is_view and name not in UNCOUNTED:
            read, written = _traffic(func, name, args, kwargs, made)
            self.note(name, read + written, _flops(func, args, kwargs, out))
        return out

    def note(self, name: str, moved: int, flops: int = 0) -> None:
        key = (name, moved, flops)
        self.lines.setdefault(key, Line(name)).add(Line(name, 1, moved, flops))

    def by_name(self) -> dict[str, Line]:
        """All sizes of an operator together."""
        found: dict[str, Line] = {}
        for line in self.lines.values():
            found.setdefault(line.name, Line(line.name)).add(line)
        return found


def kernel(name: str, *, reads: Sequence[Tensor] = (), writes: Sequence[Tensor] = (), flops: int = 0) -> None:
    """One launch of a kernel that is no operator of torch. What it changes in place is in both."""
    for costs in Costs.active:
        costs.note(name, sum(map(_size, (*reads, *writes))), flops)


def wait(place: str) -> None:
    """The host would wait for a value here."""
    for costs in Costs.active:
        costs.waits[place] += 1


@dataclass
class Total:
    """A step put together of parts: lines by operator with their estimated seconds."""

    device: Device
    lines: dict[str, Line] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    waits: Counter[str] = field(default_factory=Counter)
    peak: int = 0

    def add(self, costs: Costs, times: int = 1) -> None:
        """times: how often this part runs in the step; negative to take an extrapolated part out."""
        for line in costs.lines.values():
            name = "matrix products" if line.name in PRODUCTS else line.name
            self.lines.setdefault(name, Line(name)).add(line, times)
            self.seconds[name] = self.seconds.get(name, 0.0) + times * self.device.seconds(line)
        for place, count in costs.waits.items():
            self.waits[place] += times * count
        self.peak = max(self.peak, costs.peak)

    def sum(self) -> tuple[Line, float]:
        """All operators together, and their estimated seconds."""
        line = Line("all")
        for other in self.lines.values():
            line.add(other)
        return line, sum(self.seconds.values())


def _size(tensor: Tensor) -> int:
    """Bytes of memory behind a tensor: what is expanded is there once."""
    count = 1
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= length if stride != 0 else 1
    return count * tensor.element_size()


def _traffic(func: Any, name: str, args: Any, kwargs: Any, made: list[Tensor]) -> tuple[int, int]:
    """(bytes read, bytes written)."""
    read, written = list[Tensor](), list[Tensor]()
    overwritten = name in OVERWRITTEN or kwargs.get("beta", 1) == 0
    for position, argument in enumerate(func._schema.arguments):
        value = args[position] if position < len(args) else kwargs.get(argument.name)
        found = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
        changed = argument.alias_info is not None and argument.alias_info.is_write
        written += found if changed else []
        read += [] if changed and (argument.is_out or overwritten) else found
    changed_ids = {id(tensor) for tensor in written}
    written += [tensor for tensor in made if id(tensor) not in changed_ids]
    moved = sum(map(_size, read))
    if name in ROWS_READ and read:
        moved += min(0, sum(map(_size, made)) - _size(read[0]))
    return moved, sum(map(_size, written))


def _flops(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    packet = getattr(torch.ops.aten, func.overloadpacket.__name__.removesuffix("_"), None)
    if func.namespace != "aten" or packet not in flop_registry:
        return 0
    given = {name: value for name, value in kwargs.items() if name != "out"}
    return int(flop_registry[packet](*args, **given, out_val=out))
