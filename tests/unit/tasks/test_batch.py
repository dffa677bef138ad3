"""Proves that every tensor of a batch moves and is pinned, wherever it lies, and nothing else is touched."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data._utils.pin_memory import pin_memory

from finetune.tasks.batch import Batch


class Recorder(torch.Tensor):
    """A tensor that records what was done to it: pinning a real one needs a GPU."""

    done: str

    def __new__(cls, done: str = "") -> Recorder:
        tensor = torch.Tensor._make_subclass(cls, torch.empty(0))
        tensor.done = done
        return tensor

    def to(self, device: torch.device, *, non_blocking: bool) -> Recorder:  # type: ignore[override]
        return Recorder(f"to {device.type}, {non_blocking}")

    def pin_memory(self) -> Recorder:  # type: ignore[override]
        return Recorder("pinned")


def batch() -> Batch:
    inputs: dict[str, Any] = {"ids": Recorder(), "pictures": [Recorder(), (Recorder(),)], "longest": 7}
    return Batch((3, 4), inputs, {"boxes": [{"labels": Recorder()}]}, {"sizes": [[4, 3]]}, padding=2, positions=9)


def done(one: Batch) -> list[str]:
    pictures = one.inputs["pictures"]
    held = [one.inputs["ids"], pictures[0], pictures[1][0], one.targets["boxes"][0]["labels"]]
    return [tensor.done for tensor in held]


def test_the_loader_s_own_way_of_pinning_finds_every_tensor() -> None:
    pinned = pin_memory(batch())
    assert isinstance(pinned, Batch)
    assert done(pinned) == ["pinned"] * 4
    assert (pinned.ids, pinned.inputs["longest"], pinned.padding, pinned.positions) == ((3, 4), 7, 2, 9)
    assert pinned.meta == {"sizes": [[4, 3]]}


def test_moving_does_not_wait() -> None:
    assert done(batch().to(torch.device("cpu"))) == ["to cpu, True"] * 4
