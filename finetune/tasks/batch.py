"""What a task hands to the engine and what it says of the result: micro-batches, answers and scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch


@dataclass
class Batch:
    """One micro-batch on one device.

    ids: example ids, [batch]. inputs: keyword arguments of the model's forward, tensors [batch, ...].
    targets: what only the loss and the metrics need; {} for examples that were encoded without targets.
    meta: what decoding needs in addition to the outputs (such as the size of an image); neither for the model nor for the loss.
    padding: positions that hold padding; positions: all positions (tokens or pixels), for the padding share.
    """

    ids: tuple[int, ...]
    inputs: dict[str, Any]
    targets: dict[str, Any] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    padding: int = 0
    positions: int = 0

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device; tensors inside lists and dicts move too."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, from which a GPU copies asynchronously. torch's DataLoader calls it."""
        return self._with(lambda tensor: tensor.pin_memory())

    def _with(self, change: Callable[[Any], Any]) -> Batch:
        return replace(self, inputs=map_tensors(self.inputs, change), targets=map_tensors(self.targets, change))


def map_tensors(value: Any, change: Callable[[Any], Any]) -> Any:
    """`change` applied to every tensor inside dicts, lists and tuples; everything else stays."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: map_tensors(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map_tensors(item, change) for item in value)
    return value


@dataclass(frozen=True)
class Answer:
    """What the model says of one example. Plain Python values only: it is gathered over ranks and written as JSON.

    values: the machine-readable answer, under the names that metrics take (such as prediction, scores, tags, value).
    shown: the same for people (such as the label's name), and the input as the model saw it.
    """

    id: int
    values: Mapping[str, Any] = field(default_factory=dict)
    shown: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """How far one example's answer is from its target.

    loss: summed over the example's units of loss, without label smoothing and class weights; weight: its units.
    reference: the target, under the names that metrics take (such as reference, reference_tags, target).
    shown: the target for people.
    """

    id: int
    loss: float
    weight: int
    reference: Mapping[str, Any] = field(default_factory=dict)
    shown: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RecordOptions:
    """How much of an answer a user wants to read.

    top_k: classes listed with their scores, the likeliest first. threshold: the lowest score of a box, or of a class
    where a row may have several; None: as the task does it. logprobs: the log-probability of each token written.
    """

    top_k: int = 1
    threshold: float | None = None
    logprobs: bool = False
