"""Proves that every tensor of a batch moves and is pinned, wherever it lies, and nothing else is touched."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data._utils.pin_memory import pin_memory

from finetune.tasks.task import Batch


class Told:
    """Stands for a tensor: pinning a real one needs a GPU."""

    device = torch.device("cpu")

    def __init__(self, said: str = "") -> None:
        self.said = said

    def to(self, device: torch.device, *, non_blocking: bool) -> Told:
        return Told(f"to {device.type}, {non_blocking}")

    def pin_memory(self) -> Told:
        return Told("pinned")


def batch() -> Batch:
    inputs: dict[str, Any] = {"ids": Told(), "pictures": [Told(), (Told(),)], "longest": 7}
    return Batch((3, 4), inputs, {"boxes": [{"labels": Told()}]}, padding=2, positions=9)


def said(one: Batch) -> list[str]:
    pictures = one.inputs["pictures"]
    held = [one.inputs["ids"], pictures[0], pictures[1][0], one.targets["boxes"][0]["labels"]]
    return [tensor.said for tensor in held]


def test_the_loader_s_own_way_of_pinning_finds_every_tensor() -> None:
    pinned = pin_memory(batch())
    assert isinstance(pinned, Batch)
    assert said(pinned) == ["pinned"] * 4
    assert (pinned.ids, pinned.inputs["longest"], pinned.padding, pinned.positions) == (
        (3, 4),
        7,
        2,
        9,
    )


def test_moving_does_not_wait() -> None:
    assert said(batch().to(torch.device("cpu"))) == ["to cpu, True"] * 4
