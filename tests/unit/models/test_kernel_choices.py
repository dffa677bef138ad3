"""Proves that float32 means float32 unless TF32 was chosen, and that both ages of torch's switches agree on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from finetune.models.kernel_choices import choose_kernels, kernels_chosen


@pytest.fixture(autouse=True)
def kept() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    cudnn = torch.backends.cuda.cudnn_sdp_enabled()
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    torch.backends.cuda.enable_cudnn_sdp(cudnn)


@pytest.mark.parametrize("tf32", [True, False])
def test_products_and_convolutions(tf32: bool) -> None:
    choose_kernels("bf16" if tf32 else "tf32")
    choose_kernels("tf32" if tf32 else "fp32")
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.matmul.allow_tf32 is tf32
    assert torch.backends.cudnn.allow_tf32 is tf32  # torch's own default is True
    assert (torch.backends.cuda.matmul.fp32_precision == "tf32") is tf32
    assert (torch.backends.cudnn.conv.fp32_precision == "tf32") is tf32


@pytest.mark.parametrize("before", [(True, False), (False, True)])
def test_a_process_of_somebody_else_gets_its_own_choice_back(before: tuple[bool, bool]) -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    for precision in ("tf32", "fp32"):
        with pytest.raises(RuntimeError, match="an answer failed"), kernels_chosen(precision):
            assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is (precision == "tf32")
            assert not torch.backends.cuda.cudnn_sdp_enabled()
            raise RuntimeError("an answer failed")
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before
        assert torch.backends.cuda.cudnn_sdp_enabled()
