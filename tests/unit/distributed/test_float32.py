"""Proves that float32 means float32 unless TF32 was chosen, and that both ages of torch's switches agree on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from finetune.distributed.session import choose_float32


@pytest.fixture(autouse=True)
def kept() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("tf32", [True, False])
def test_products_and_convolutions(tf32: bool) -> None:
    choose_float32(tf32=not tf32)
    choose_float32(tf32=tf32)
    assert torch.backends.cuda.matmul.allow_tf32 is tf32
    assert torch.backends.cudnn.allow_tf32 is tf32  # torch's own default is True
    assert (torch.backends.cuda.matmul.fp32_precision == "tf32") is tf32
    assert (torch.backends.cudnn.conv.fp32_precision == "tf32") is tf32
