"""Which kernels attention asks for: cuDNN's for long unmasked segments of a round length and for nothing else, and keys with as
many heads as queries where a GPU has no other kernel than the one that holds all scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend

from finetune.models import attention_kernels, segment_blocks, segmented
from finetune.models.attention_kernels import (
    cudnn_first,
    cudnn_left_out,
    has_sound_cudnn,
    leave_cudnn_out,
    prefers_cudnn,
)

LENGTHS = (5, 17, 9)


@pytest.fixture(autouse=True)
def kept() -> Iterator[None]:
    """torch's choices are of the whole process."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    yield
    torch.backends.cuda.enable_cudnn_sdp(before)
    has_sound_cudnn.cache_clear()


def test_cudnn_is_asked_inside_alone() -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    leave_cudnn_out()
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    with cudnn_first():
        assert torch.backends.cuda.cudnn_sdp_enabled()
        assert torch._C._get_sdp_priority_order()[0] == int(SDPBackend.CUDNN_ATTENTION)
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()
    assert torch._C._get_sdp_priority_order()[0] == int(SDPBackend.FLASH_ATTENTION)


@pytest.mark.parametrize("enabled", [True, False])
def test_a_library_leaves_the_choice_of_its_process(enabled: bool) -> None:
    torch.backends.cuda.enable_cudnn_sdp(enabled)
    with cudnn_left_out():
        assert not torch.backends.cuda.cudnn_sdp_enabled() and torch.backends.cuda.flash_sdp_enabled()
        with cudnn_first():
            assert torch.backends.cuda.cudnn_sdp_enabled()
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled() is enabled


@pytest.mark.parametrize(
    ("length", "head", "hopper", "version", "asked"),
    [
        (1024, 128, True, 91900, True),
        (1024, 64, True, 91501, True),
        (1100, 128, True, 91900, False),
        (896, 128, True, 91900, False),
        (1024, 256, True, 91900, False),
        (1024, 128, False, 91900, False),
        (1024, 128, True, 91300, False),
        (1024, 128, True, None, False),
    ],
)
def test_cudnn_is_preferred_where_it_pays_and_is_sound(
    length: int, head: int, hopper: bool, version: int | None, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_kernels, "is_hopper", lambda device: hopper)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: version)
    has_sound_cudnn.cache_clear()
    assert prefers_cudnn(torch.empty(1, 4, 2 * length, head), length) is asked


@pytest.mark.parametrize("length", [128, 127])
def test_equal_segments_are_computed_inside(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, attend = [], torch.nn.functional.scaled_dot_product_attention

    def watched(*arguments: Any, **named: Any) -> torch.Tensor:
        asked.append(torch.backends.cuda.cudnn_sdp_enabled())
        return attend(*arguments, **named)

    leave_cudnn_out()
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    monkeypatch.setattr(attention_kernels, "is_hopper", lambda device: True)
    monkeypatch.setattr(attention_kernels, "has_sound_cudnn", lambda: True)
    monkeypatch.setattr(attention_kernels, "CUDNN_LENGTH", 128)
    query, key, value = (torch.randn(1, heads, 2 * length, 8) for heads in (4, 2, 2))
    segmented._equal_segments(query, key, value, length, None, causal=True)
    assert asked == [length == 128]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fewer_heads_of_keys_are_spread_where_flash_attention_cannot_run(
    dtype: torch.dtype, window: int | None, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And results and gradients are the same."""
    torch.manual_seed(0)
    borders = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    inputs = [torch.randn(1, heads, sum(LENGTHS), 8, dtype=dtype).requires_grad_() for heads in (4, 2, 2)]
    attend = segment_blocks.scaled_dot_product_attention
    heads: list[tuple[int, bool, bool]] = []

    def watched(query: Any, key: Any, value: Any, **named: Any) -> torch.Tensor:
        heads.append((key.shape[1], named["enable_gqa"], named["attn_mask"] is not None))
        return attend(query, key, value, **named)

    def run() -> list[torch.Tensor]:
        out = segment_blocks.attend_in_blocks(
            *inputs, borders.clone(), causal=causal, window=window, dropout=0.0, scaling=None
        )
        return [out, *torch.autograd.grad(out.float().square().sum(), inputs)]

    wanted = run()
    monkeypatch.setattr(segment_blocks, "scaled_dot_product_attention", watched)
    monkeypatch.setattr(attention_kernels, "is_on_gpu", lambda tensor: True)
    found = run()
    assert heads
    for count, grouped, masked in heads:
        assert (count, grouped) == ((2, True) if dtype == torch.bfloat16 and not masked else (4, False))
    loose = 2e-2 if dtype == torch.bfloat16 else 1e-5
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, other, rtol=loose, atol=loose)
