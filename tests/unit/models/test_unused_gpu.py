"""Proves that a GPU which torch cannot use is not passed over in silence."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from finetune.models import device
from finetune.models.device import describe_unused_gpu


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine with a GPU that torch does not take."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(device, "has_cuda", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return monkeypatch


def test_a_build_of_torch_without_cuda_is_named(machine: Any) -> None:
    machine.setattr(torch.backends.cuda, "is_built", lambda: False)
    note = describe_unused_gpu()
    assert f"torch {torch.__version__} cannot use it (it was built without CUDA)" in note
    assert "DS_ACCELERATOR=cpu" in note


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver by downloading",
            "(The NVIDIA driver on your system is too old (found version 12020); CUDA_VISIBLE_DEVICES is 7)",
        ),
        ("No CUDA GPUs are available", "(No CUDA GPUs are available; CUDA_VISIBLE_DEVICES is 7)"),
    ],
)
def test_the_reason_is_that_of_torch(said: str, reason: str, machine: Any) -> None:
    def refuse() -> None:
        raise RuntimeError(said)

    machine.setattr(torch.backends.cuda, "is_built", lambda: True)
    machine.setattr(torch.cuda, "init", refuse)
    machine.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert f"cannot use it {reason}: the model is on the CPU" in describe_unused_gpu()


def test_nothing_is_said_of_a_gpu_that_is_used_or_hidden(machine: Any) -> None:
    machine.setattr(torch.cuda, "is_available", lambda: True)
    assert describe_unused_gpu() == ""
    machine.setattr(torch.cuda, "is_available", lambda: False)
    machine.setattr(device, "has_cuda", lambda: False)
    assert describe_unused_gpu() == ""
