"""Counts what a piece of code asks of its device, without a clock: operators, bytes moved, live and peak memory, and moments
at which the host waits for a value.

Used by benchmarks/loss_head.py, benchmarks/step_counts.py and by tests, so that a regression on a GPU shows on a machine
without one. Real tensors and fake ones (FakeTensorMode) count alike.
"""

from __future__ import annotations

import traceback
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BLOCK = 512  # bytes; CUDA's allocator rounds up to it
MIB, GIB = 2**20, 2**30
UNCOUNTED = ("detach", "alias", "empty", "empty_like", "empty_strided", "new_empty", "_reshape_alias", "_unsafe_view")


class Count(TorchDispatchMode):
    """Within: `operators` by name without views, `moved` bytes that they read and write, `peak` live bytes.

    Memory that lives already is known by `hold`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()
        self.moved = self.live = self.peak = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def hold(self, *tensors: Any) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage in self._seen:
                continue
            self._seen.add(storage)
            size = -(-storage.nbytes() // BLOCK) * BLOCK
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        written = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.hold(*written)
        name = func.overloadpacket.__name__
        if func.namespace != "prim" and not func.is_view and name not in UNCOUNTED:
            read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            self.operators[name] += 1
            self.moved += sum(tensor.numel() * tensor.element_size() for tensor in (*read, *written))
        return out


class Waits:
    """Within: `places` ("file:line in function") where the host would wait for a GPU: a value asked of a tensor, or a copy
    to the CPU. Tensors of this process are on the CPU, where nothing waits; it is the question that counts.
    """

    METHODS = (
        "item",
        "tolist",
        "__bool__",
        "__int__",
        "__float__",
        "__index__",
        "cpu",
        "numpy",
        "nonzero",
        "is_nonzero",
    )
    OPERATORS = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "unique", "_unique2")

    def __init__(self) -> None:
        self.places: Counter[str] = Counter()
        outer = self

        class Functions(TorchFunctionMode):
            def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                if getattr(func, "__name__", "") in outer.METHODS and _asked(args):
                    outer._note()
                    with torch._C.DisableTorchFunction(), outer._quiet():
                        return func(*args, **(kwargs or {}))
                return func(*args, **(kwargs or {}))

        class Operators(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                if func.overloadpacket.__name__ in outer.OPERATORS and not outer._is_quiet:
                    outer._note()
                return func(*args, **(kwargs or {}))

        self._modes = Functions(), Operators()
        self._is_quiet = False

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        self._is_quiet = True
        try:
            yield
        finally:
            self._is_quiet = False

    def _note(self) -> None:
        frames = [
            f for f in traceback.extract_stack() if "counting.py" not in f.filename and "/torch/" not in f.filename
        ]
        self.places[f"{frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}"] += 1

    def __enter__(self) -> Waits:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)


def _asked(args: Any) -> bool:
    return bool(args) and isinstance(args[0], torch.Tensor)


def fake_model(mode: FakeTensorMode, build: Any, dtype: torch.dtype) -> nn.Module:
    """What `build()` makes, with weights in `dtype` that have no values. Ties stay."""
    with torch.device("meta"):
        model: nn.Module = build()
    made: dict[int, Any] = {}
    with mode:
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in made:
                        kind = dtype if tensor.is_floating_point() else tensor.dtype
                        fake = torch.empty(tensor.shape, dtype=kind)
                        made[id(tensor)] = (
                            nn.Parameter(fake, tensor.requires_grad) if tensors is module._parameters else fake
                        )
                    tensors[name] = made[id(tensor)]  # type: ignore[assignment]
    return model
