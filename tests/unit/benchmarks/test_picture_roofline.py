"""Proves that both sides of an estimated picture step compute the same products, and that each is printed."""

from __future__ import annotations

import sys

import pytest

from benchmarks.gpu import picture_roofline

TINY = {
    "resnet-50": ("resnet", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}),
    "vit-b": ("vit", {"patch_size": 56, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}),
}


def test_both_sides_compute_the_same_products(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(picture_roofline, "MODELS", TINY)
    for name in TINY:
        ours, plain = (picture_roofline.estimate(name, side, 2).sum()[0].flops for side in ("ours", "plain loop"))
        assert ours == plain > 0
    monkeypatch.setattr(sys, "argv", ["picture_roofline", "--batch", "2"])
    picture_roofline.main()
    shown = capsys.readouterr().out
    assert all(shown.count(f"\n| {side} | ") == 2 for side in ("ours", "plain loop"))
