"""Proves that a state divided into parts, staged and written by several threads is read back as it was, whatever the sizes."""

import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.distributed.sharded_state import Shard
from finetune.training import pinned_memory
from finetune.training.checkpoint_manifest import MANIFEST, Checkpoint, Manifest
from finetune.training.checkpoint_reader import open_checkpoint
from finetune.training.checkpoint_tensors import CheckpointTensors
from finetune.training.checkpoint_writer import write_parts
from finetune.training.staging import Staging, divide

SIZES = st.lists(st.integers(1, 200), min_size=1, max_size=12)


def shards_of(sizes, dtype=torch.float32):
    return [Shard(f"w{index}", 0, (size,), torch.arange(size).to(dtype)) for index, size in enumerate(sizes)]


@given(SIZES, st.integers(1, 60))
def test_no_part_is_larger_than_it_may_be_and_nothing_is_lost(sizes, limit):
    parts = divide(shards_of(sizes), part_bytes=4 * limit)
    assert all(0 < sum(values.nbytes for values in part.values()) <= 4 * limit for part in parts)
    names = [name for part in parts for name in part]
    assert len(names) == len(set(names))
    assert sum(values.numel() for part in parts for values in part.values()) == sum(sizes)


@pytest.mark.parametrize("limit", [40, 1 << 20])
def test_what_is_written_in_parts_is_read_as_one(tmp_path, limit):
    shards = [*shards_of([3, 100, 7, 64]), Shard("b", 5, (9,), torch.arange(4).to(torch.bfloat16))]
    staged = Staging(torch.device("cpu")).copy(divide(shards, part_bytes=4 * limit))
    written = write_parts(tmp_path / "state-00000-of-00001.safetensors", staged, {}, threads=3)
    assert len(written.files) == (1 if limit > 1000 else 6)
    manifest = Manifest(step=1, loop={}, scalars={}, files=written.files)
    (tmp_path / MANIFEST).write_text(manifest.to_json())
    open_checkpoint(tmp_path)
    with CheckpointTensors(Checkpoint(tmp_path, manifest)) as stored:
        for shard in shards:
            assert torch.equal(stored.read(shard.key, shard.start, shard.values.numel()), shard.values)
        assert torch.equal(stored.read("w1", 35, 50), torch.arange(35.0, 85.0)), "across parts"


def test_buffers_are_used_again_while_sizes_stay():
    staging = Staging(torch.device("cpu"))
    first = staging.copy(divide(shards_of([5, 6])))
    at = [values.data_ptr() for part in first for values in part.values()]
    second = staging.copy(divide(shards_of([5, 6])))
    assert [values.data_ptr() for part in second for values in part.values()] == at
    assert staging.copy(divide(shards_of([5, 600]))) and staging.is_filled


def test_columns_of_a_matrix_stay_whole():
    shard = Shard("w", 0, (8, 8), torch.arange(32.0), columns=(0, 4))
    (part,) = divide([shard], part_bytes=16)
    assert list(part) == ["w[0:4]@0"]


class Cuda:
    """In place of CUDA's own functions. registered: address -> bytes."""

    def __init__(self, code):
        self.code, self.registered = code, {}

    def cudaHostRegister(self, address, size, flags):  # noqa: N802
        assert flags == 1
        if not self.code:
            self.registered[address] = size
        return self.code

    def cudaHostUnregister(self, address):  # noqa: N802
        del self.registered[address]
        return 0


@pytest.fixture(params=[0, 2], ids=["pinned by us", "pinned by torch"])
def cuda(request, monkeypatch):
    """A CPU that passes for a GPU to a Staging, with a CUDA that pins memory or refuses to."""
    cuda, empty = Cuda(request.param), torch.empty
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory=False, **options: empty(*size, **options))
    return cuda


def test_pinned_buffers_are_used_again_and_given_back(cuda, monkeypatch):
    forgotten = []
    monkeypatch.setattr(pinned_memory, "_forget_error", lambda: forgotten.append(1))
    staging = Staging(torch.device("cuda"))
    shards = shards_of([3, 100, 7, 64])
    for _ in range(2):
        parts = staging.copy(divide(shards, part_bytes=160))
        assert {name: values.tolist() for part in parts for name, values in part.items()} == {
            name: values.tolist() for part in divide(shards, part_bytes=160) for name, values in part.items()
        }
        addresses = {next(iter(part.values())).data_ptr(): None for part in parts}
        assert list(cuda.registered) == ([] if cuda.code else list(addresses))
    before = set(cuda.registered)
    staging.copy(divide(shards_of([5, 600])))
    if not cuda.code:
        assert len(set(cuda.registered) - before) <= 1 == len(cuda.registered), "the old ones are given back"
    assert len(forgotten) == (len(parts) + 1 if cuda.code else 0)
    staging.clear()
    assert not cuda.registered and not staging.is_filled


def test_where_nothing_more_can_be_pinned_other_memory_serves(monkeypatch):
    """As on WSL, which limits it. torch for CPUs refuses to pin, as a GPU's driver does then."""
    empty, refused = torch.empty, []

    def refuse(*size, pin_memory=False, **options):
        if pin_memory:
            refused.append(size)
            raise RuntimeError("CUDA error: out of memory")
        return empty(*size, **options)

    monkeypatch.setattr(torch, "empty", refuse)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: Cuda(2))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(pinned_memory, "_forget_error", lambda: None)
    staging = Staging(torch.device("cuda"))
    (part,) = staging.copy(divide(shards_of([3, 100])))
    assert refused and [values.tolist() for values in part.values()] == [list(range(3)), list(range(100))]
    staging.clear()


@pytest.mark.skipif(sys.platform != "linux", reason="loader processes are forked on Linux alone")
def test_a_loader_process_does_not_inherit_pinned_memory():
    """Else the system copies it, for the process or for this one, and the GPU writes to pages that nobody reads."""
    memory = pinned_memory._touched(1 << 20)
    other = torch.zeros(1 << 18)
    mapped = []
    for tensor in (memory, other):
        child = os.fork()
        if not child:
            os._exit(_is_mapped(tensor.data_ptr()))
        mapped.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    assert mapped == [0, 1] and _is_mapped(memory.data_ptr())
    assert not memory.any()


def _is_mapped(address):
    """In this process."""
    areas = (line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines())
    return any(int(start, 16) <= address < int(end, 16) for start, end in areas)
