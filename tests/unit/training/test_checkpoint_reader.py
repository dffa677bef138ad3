"""A matrix stored in any pieces, of whole rows or of groups of columns, is read as it was, in any range."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from safetensors.torch import save_file

from finetune.distributed.sharded_state import Shard, read_slice
from finetune.distributed.tensor_parallel import Slice
from finetune.errors import UserError
from finetune.training.checkpoint_manifest import Checkpoint, Manifest
from finetune.training.checkpoint_tensors import CheckpointTensors, parse_name, shard_name


def cut(total, draw):
    """Borders of pieces of a range, first 0 and last `total`."""
    return sorted({0, total, *draw(some.lists(some.integers(0, total), max_size=3))})


def store(folder: Path, pieces: list[Shard]) -> CheckpointTensors:
    save_file({shard_name(shard): shard.values.contiguous() for shard in pieces}, folder / "state.safetensors")
    shapes = {shard.key: list(shard.shape) for shard in pieces}
    return CheckpointTensors(Checkpoint(folder, Manifest(1, {}, {}, {"state.safetensors": (0, "")}, shapes)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(some.data())
def test_columns_are_put_together(tmp_path, data):
    rows, columns = data.draw(some.integers(1, 7)), data.draw(some.integers(2, 9))
    matrix = torch.arange(rows * columns, dtype=torch.float32).view(rows, columns) + 1
    pieces, borders = [], cut(columns, data.draw)
    for first, last in itertools.pairwise(borders):
        flat = matrix[:, first:last].reshape(-1)
        ends = cut(flat.numel(), data.draw)
        for start, end in itertools.pairwise(ends):
            pieces.append(Shard("w", start, (rows, columns), flat[start:end], (first, last)))
    with store(tmp_path, pieces) as stored:
        assert stored.keys == {"w"}
        assert torch.equal(stored.whole("w"), matrix)
        start = data.draw(some.integers(0, matrix.numel() - 1))
        numel = data.draw(some.integers(1, matrix.numel() - start))
        assert torch.equal(stored.read("w", start, numel), matrix.view(-1)[start : start + numel])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(some.data())
def test_a_rank_reads_its_columns_and_its_rows_of_what_others_stored(tmp_path, data):
    shape = (data.draw(some.integers(2, 7)), data.draw(some.integers(2, 7)))
    matrix = torch.arange(math.prod(shape), dtype=torch.float32).view(shape) + 1
    ends = cut(matrix.numel(), data.draw)
    flat = matrix.view(-1)
    pieces = [Shard("w", start, shape, flat[start:end]) for start, end in itertools.pairwise(ends)]
    dim = data.draw(some.integers(0, 1))
    first = data.draw(some.integers(1, shape[dim] - 1))
    with store(tmp_path, pieces) as stored:
        for index, part in enumerate(matrix.split((first, shape[dim] - first), dim=dim)):
            place, own = Slice(shape, dim, (first, shape[dim] - first), index), part.reshape(-1)
            start = data.draw(some.integers(0, own.numel() - 1))
            numel = data.draw(some.integers(1, own.numel() - start))
            assert torch.equal(read_slice(stored.read, "w", start, numel, place), own[start : start + numel])


def test_a_missing_column_is_reported(tmp_path):
    matrix = torch.ones(4, 6)
    with store(tmp_path, [Shard("w", 0, (4, 6), matrix[:, :3].reshape(-1), (0, 3))]) as stored:
        with pytest.raises(UserError, match="does not hold w"):
            stored.whole("w")
        with pytest.raises(UserError, match="does not hold v"):
            stored.read("v", 0, 1)


def test_names_say_columns_and_start():
    shard = Shard("a.weight.exp_avg", 7, (4, 6), torch.ones(2), (3, 6))
    assert shard_name(shard) == "a.weight.exp_avg[3:6]@7"
    assert parse_name(shard_name(shard)) == ("a.weight.exp_avg", (3, 6), 7)
    assert parse_name("a.weight@12") == ("a.weight", None, 12)


@pytest.mark.parametrize("dtype", (torch.int64, torch.bool, torch.bfloat16))
def test_a_tensor_in_parts_keeps_its_type_and_a_gap_is_refused(tmp_path, dtype):
    whole = (torch.arange(30) * 2**40 + 1 if dtype == torch.int64 else torch.arange(30) % 3).to(dtype)
    parts = [Shard("w", start, (30,), whole[start : start + 10]) for start in (0, 10, 20)]
    with store(tmp_path, parts) as stored:
        assert torch.equal(stored.read("w", 5, 20), whole[5:25]) and stored.read("w", 5, 20).dtype == dtype
    with store(tmp_path, [parts[0], parts[2]]) as stored, pytest.raises(UserError, match=r"does not hold w\[5:25\]"):
        stored.read("w", 5, 20)
