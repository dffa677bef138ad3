"""Proves that ranks which see fewer GPUs than there are ranks report that NCCL is not used."""

import pytest
import torch

from finetune.distributed.process_group import sharing_note


@pytest.mark.parametrize(
    ("ranks", "gpus", "words"), ((4, 1, "4 ranks of this host see 1 GPU:"), (4, 2, "see 2 GPUs:"), (4, 4, ""))
)
def test_shared_gpus_are_reported(monkeypatch, ranks, gpus, words):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    note = sharing_note()
    assert words in note and bool(note) == bool(words) == ("gloo" in note)
