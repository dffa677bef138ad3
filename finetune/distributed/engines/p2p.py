"""Messages between the ranks of a pipeline: activations forward, gradients back; and the groups that reduce."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import torch
import torch.distributed as dist

from finetune.distributed.engines.accelerator import GIVE_UP_AFTER
from finetune.distributed.session import Session

_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.bool, torch.int64, torch.int32)
_MOST_DIMENSIONS = 8


class P2P:
    """One rank's. All ranks make theirs at once.

    Activations and gradients have process groups of their own, so that neither direction waits for the other. replica:
    the group (gloo) of the ranks that hold this copy of the model; peers: of the same stage of all copies.
    waiting_seconds: for neighbors, so far (on the CPU; a GPU waits by itself). sent_bytes: so far.

    Messages lie in main memory where ranks share a GPU: gloo, which carries them there, sends and receives nowhere else.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        size, rank, first = session.replica_size, session.rank, session.replica * session.replica_size
        self.before, self.after, self.last_rank = rank - 1, rank + 1, first + size - 1
        every = list(range(session.world_size))
        replicas = [every[start : start + size] for start in range(0, session.world_size, size)]
        controls = [dist.new_group(ranks, backend="gloo", timeout=GIVE_UP_AFTER) for ranks in replicas]
        peers = [dist.new_group(every[stage::size], timeout=GIVE_UP_AFTER) for stage in range(size)]
        self.replica, self.peers = controls[session.replica], peers[rank % size]
        self._forward, self._backward = (dist.new_group(timeout=GIVE_UP_AFTER) for _ in range(2))
        self.wire = torch.device("cpu") if dist.get_backend() == "gloo" else session.device
        self._kinds: list[tuple[torch.dtype, tuple[int, ...]]] | None = None  # of what is received, one example's
        self._several = False  # whether it is a tuple
        self._header_sent = False
        self._sent: deque[tuple[Any, torch.Tensor]] = deque()
        self.waiting_seconds = 0.0
        self.sent_bytes = 0

    def give_activation(self, activation: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        """To the next stage: a tensor [batch, ...], or always so many. The first time, a header with types and shapes of one
        example's goes ahead.
        """
        tensors = activation if isinstance(activation, tuple) else (activation,)
        if not self._header_sent:
            header = torch.zeros(len(tensors), 2 + _MOST_DIMENSIONS, dtype=torch.int64)
            for row, tensor in zip(header, tensors, strict=True):
                row[0], row[1] = _TYPES.index(tensor.dtype), tensor.dim() - 1
                row[2 : 1 + tensor.dim()] = torch.tensor(tensor.shape[1:])
            count = torch.tensor([len(tensors) if isinstance(activation, tuple) else 0])
            for message in (count, header):
                dist.send(message.to(self.wire), dst=self.after, group=self._forward)
            self._header_sent = True
        for tensor in tensors:
            self._send(tensor, self.after, self._forward)

    def take_activation(self, batch: int) -> Any:
        """From the stage before, what it gave: [batch, ...], or a tuple of such tensors."""
        began = time.perf_counter()
        if self._kinds is None:
            count = self._receive((1,), torch.int64, self.before, self._forward)
            self._several = bool(count.item())
            shape = (max(int(count.item()), 1), 2 + _MOST_DIMENSIONS)
            header = self._receive(shape, torch.int64, self.before, self._forward)
            self._kinds = [(_TYPES[kind], tuple(sizes[:dimensions])) for kind, dimensions, *sizes in header.tolist()]
        tensors = tuple(self._receive((batch, *shape), kind, self.before, self._forward) for kind, shape in self._kinds)
        self.waiting_seconds += time.perf_counter() - began
        return tensors if self._several else tensors[0]

    def give_gradient(self, gradient: torch.Tensor) -> None:
        """To the stage before: of what was taken from it, [batch, ...]."""
        self._send(gradient, self.before, self._backward)

    def take_gradient(self, of: torch.Tensor) -> torch.Tensor:
        """From the next stage: the gradient of the activation `of` that it received, in the shape and dtype of that."""
        began = time.perf_counter()
        gradient = self._receive(tuple(of.shape), of.dtype, self.after, self._backward)
        self.waiting_seconds += time.perf_counter() - began
        return gradient

    def finish(self) -> None:
        """Wait until everything that was sent has left."""
        began = time.perf_counter()
        while self._sent:
            self._sent.popleft()[0].wait()
        self.waiting_seconds += time.perf_counter() - began

    def meet(self) -> None:
        """Wait until every stage of the replica has finished its schedule: later stages finish sooner, and wait here. All ranks
        of the replica call it.
        """
        self.finish()
        began = time.perf_counter()
        dist.barrier(group=self.replica)
        self.waiting_seconds += time.perf_counter() - began

    def _receive(self, shape: tuple[int, ...], dtype: torch.dtype, source: int, group: Any) -> torch.Tensor:
        """A tensor on this rank's device."""
        tensor = torch.empty(shape, dtype=dtype, device=self.wire)
        dist.recv(tensor, src=source, group=group)
        return tensor.to(self.session.device)

    def _send(self, tensor: torch.Tensor, to: int, group: Any) -> None:
        """Without waiting; the tensor is kept until it has left."""
        while self._sent and self._sent[0][0].is_completed():
            self._sent.popleft()
        tensor = tensor.contiguous().to(self.wire)
        self._sent.append((dist.isend(tensor, dst=to, group=group), tensor))
        self.sent_bytes += tensor.nbytes
