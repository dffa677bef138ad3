"""Proves that a batch arrives from a loader process as it was collated, in one block of shared memory; and that where shared
memory is as small as in a container, every batch arrives all the same, and the user hears of it once.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from finetune.data.order import transport
from finetune.data.order.transport import pack
from finetune.tasks.batch import Batch

PIXELS = torch.arange(2 * 4 * 5 * 3, dtype=torch.uint8).reshape(2, 4, 5, 3).permute(0, 3, 1, 2)
TENSORS = {
    "channels innermost": PIXELS,
    "turned": torch.arange(12.0).reshape(3, 4).t(),
    "one of many": torch.arange(30).reshape(5, 6)[1:3],
    "expanded": torch.tensor([2.5]).expand(3, 2),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "flags": torch.tensor([True, False, True]),
    "a number": torch.tensor(7),
    "nothing": torch.empty(0, 4),
}


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and bool(torch.equal(one, other))


def arrive(batch: Any) -> tuple[Any, bool]:
    """Packed, sent and unpacked; whether through shared memory."""
    packed = pack(batch)
    sent = pickle.loads(pickle.dumps(packed))  # in one process: the block is copied
    assert sent.is_shared == packed.is_shared
    return sent.unpack(), packed.is_shared


@pytest.mark.parametrize("shared", [True, False])
def test_a_batch_arrives_as_it_was_collated(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not shared:
        monkeypatch.setattr(transport, "shared_memory_bytes", lambda: (10, 64 << 20))
    targets = {
        "labels": [{"boxes": tensor} for tensor in TENSORS.values()],
        "names": ["a", "b"],
        "numbers": np.arange(3),
    }
    batch = Batch((4, 2), dict(TENSORS), targets, {"places": ["train.jsonl:1"]}, padding=3, positions=60)
    found, was_shared = arrive(batch)
    assert was_shared == shared and len(TENSORS) == 8
    assert all(same(found.inputs[name], tensor) for name, tensor in TENSORS.items())
    assert all(
        same(one["boxes"], tensor) for one, tensor in zip(found.targets["labels"], TENSORS.values(), strict=True)
    )
    assert found.inputs["channels innermost"].is_contiguous(memory_format=torch.channels_last)
    assert (found.ids, found.meta, found.padding, found.positions) == ((4, 2), batch.meta, 3, 60)
    assert found.targets["names"] == ["a", "b"] and found.targets["numbers"].tolist() == [0, 1, 2]
    storages = {tensor.untyped_storage().data_ptr() for tensor in found.inputs.values() if tensor.numel()}
    assert len(storages) == 1, "one block: opened, pinned and freed once"


def test_a_batch_without_tensors_arrives() -> None:
    assert arrive([(4, 0), (2, 0)])[0] == [(4, 0), (2, 0)]


def test_half_of_the_shared_memory_is_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "shared_memory_bytes", lambda: (40 << 20, 64 << 20))
    assert pack(torch.zeros(8 << 20, dtype=torch.uint8)).is_shared
    assert not pack(torch.zeros(9 << 20, dtype=torch.uint8)).is_shared


PROGRAM = """
import numpy as np, torch
from finetune.data.order.loader import RankStep, iterate_batches

class Rows:
    def __getitem__(self, index):
        return {"id": index}

def collate(examples):
    return {"ids": [one["id"] for one in examples], "pixels": torch.full((3 << 20,), float(examples[0]["id"]))}

steps = [RankStep(index, 0, ((index,),)) for index in range(20)]
found = [(step, batch) for step, (batch,) in iterate_batches(Rows(), collate, steps, workers=2, tell=print)]
assert [step.index for step, _ in found] == list(range(20)) and [batch["ids"] for _, batch in found] == [[n] for n in range(20)]
assert all(bool((batch["pixels"] == index).all()) for index, (_, batch) in enumerate(found))
print("all here")
"""


@pytest.mark.timeout(120)
def test_every_batch_arrives_where_shared_memory_is_that_of_a_container() -> None:
    """20 batches of 12 MiB, all of which are kept, through /dev/shm of 64 MiB: torch's own way loses one, and waits."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("a small /dev/shm is a mount of a process's own: needs root on Linux")
    mount = "mount -t tmpfs -o size=64m tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("mounting is refused here")
    command = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$0" -c "$1"', sys.executable, PROGRAM]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("--shm-size") == 1 and ended.stdout.endswith("all here\n"), ended.stdout
