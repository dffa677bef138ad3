"""A training step waits for the device nowhere, and a row of the journal once: counted on a pretended device, line by line."""

from __future__ import annotations

from collections import Counter
from itertools import chain, pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml

from finetune.distributed.sharded_state import optimizer_scalars
from tests.e2e.inside import train_here
from tests.gpu.conftest import GpuRanks
from tests.gpu.language_model import recipe, write_rows
from tests.gpu.test_tasks import VIT
from tests.gpu.test_tasks import recipe as task_recipe
from tests.pretended_cuda.install import is_pretended
from tests.pretended_cuda.waits import noting_waits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not is_pretended(), reason="waits are counted on a pretended device: pytest --pretend-cuda"),
]
FIRST = 3  # the step from which waits count: before, libraries warm up
Waits = list[tuple[str, str]]


def waits_of_steps(folder: str, name: str, run: str) -> tuple[list[Waits], list[Waits]]:
    """Of each step: (why, place) of the waits inside train_step, and of those from its beginning to the next step's."""
    from finetune.training import loop

    real, starts, ends = loop.train_step, list[int](), list[int]()
    with noting_waits() as waits:

        def train_step(*args: Any, **options: Any) -> Any:
            starts.append(len(waits))
            result = real(*args, **options)
            ends.append(len(waits))
            return result

        with mock.patch.object(loop, "train_step", train_step):
            train_here(folder, name, run, [], "never", {})
        seen = [(wait.why, wait.place) for wait in waits]
    inside = [seen[start:end] for start, end in zip(starts, ends, strict=True)]
    return inside, [seen[start:end] for start, end in pairwise(starts)]


def count(gpu: GpuRanks, values: dict[str, Any]) -> tuple[Counter[Any], Counter[Any], int]:
    """Waits inside the steps from FIRST on, and of whole rounds of the loop but the last, by (why, place); and of how many."""
    values["evaluation"] = {"every": values["training"]["steps"], "samples": 0}
    (gpu.folder / "waits.yaml").write_text(yaml.safe_dump(values))
    ((inside, rounds),) = gpu.pool.run(1, waits_of_steps, str(gpu.folder), "waits.yaml", str(gpu.folder / "run"))
    inside, rounds = inside[FIRST - 1 : -1], rounds[FIRST - 1 :]
    assert len(inside) == len(rounds) >= 3
    return Counter(chain(*inside)), Counter(chain(*rounds)), len(rounds)


LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "bf16": {"training": {"precision": "bf16"}},
    "masters": {"training": {"precision": "bf16"}, "parallel": {"master_weights": True}},
    "fp32": {"training": {"precision": "fp32"}, "data": {"capacity": 2048}},  # one micro-batch
    "lora": {"training": {"precision": "bf16"}, "adapter": {"rank": 4}},
    "packed": {"training": {"precision": "bf16"}, "data": {"packing": "packed", "capacity": 256}},
    "fp16": {"training": {"precision": "fp16"}},
}


def language_model(gpu: GpuRanks, name: str, engine: str) -> dict[str, Any]:
    write_rows(gpu.folder)
    values = recipe(parallel={"deepspeed": engine})
    for section, changes in LANGUAGE_MODELS[name].items():
        values[section] = {**values.get(section, {}), **changes}
    values["training"]["steps"] = 7
    return values


def test_steps_of_all_weights_are_read_at_once() -> None:
    """A fused optimizer counts on the device, for each weight: a checkpoint asked for one after the other."""
    weights = [torch.nn.Parameter(torch.ones(3, device="cuda")) for _ in range(5)]
    optimizer = torch.optim.AdamW(weights, fused=True)
    for _ in range(2):
        torch.stack([weight.sum() for weight in weights]).sum().backward()
        optimizer.step()
    with noting_waits() as waits:
        assert optimizer_scalars(optimizer) == {"optimizer_step": 2}
    assert len(waits) == 1


BETWEEN = (
    "finetune/distributed/transfer.py",
    "finetune/distributed/stopwatch.py",
)  # read for a row: once per step each
TRACED = "finetune/distributed/tracer.py"  # before and after a step that is traced


def check_rounds(rounds: Counter[Any], steps: int) -> None:
    """Between two steps, a row of the journal reads what the step gave, and its seconds; nothing else waits."""
    files = Counter[str]()
    for (_, place), times in rounds.items():
        files[place.partition(":")[0]] += times
    traced = files.pop(TRACED, 0)
    assert traced <= 2 * steps and files == dict.fromkeys(BETWEEN, steps), rounds


@pytest.mark.parametrize("name", ["bf16", "masters", "lora", "packed"])
def test_a_step_waits_for_nothing_and_a_row_once(gpu: GpuRanks, name: str) -> None:
    inside, rounds, steps = count(gpu, language_model(gpu, name, "none"))
    assert not inside
    check_rounds(rounds, steps)


def test_a_step_of_a_picture_model_waits_for_nothing(gpu: GpuRanks) -> None:
    values = task_recipe(VIT, Path(gpu.folder), parallel={"deepspeed": "none"})
    values["training"]["steps"] = 7
    inside, _, _ = count(gpu, values)
    assert not inside


def test_waits_of_loss_scaling_are_those_of_accelerate(gpu: GpuRanks) -> None:
    """Whether fp16 overflowed, torch's GradScaler asks before each update."""
    inside, _, steps = count(gpu, language_model(gpu, "fp16", "none"))
    assert not [place for _, place in inside if place.startswith("finetune/")], inside
    assert sum(inside.values()) <= 2 * steps, inside


def test_waits_under_zero_are_those_of_deepspeed(gpu: GpuRanks) -> None:
    inside, _, _ = count(gpu, language_model(gpu, "bf16", "zero2"))
    assert inside and not [place for _, place in inside if place.startswith("finetune/")], inside


def test_attention_in_float32_reads_the_borders_of_a_batch_once(gpu: GpuRanks) -> None:
    """No kernel takes segments of varying length in float32: their blocks are laid out by the host, once for all layers."""
    inside, _, steps = count(gpu, language_model(gpu, "fp32", "none"))
    file = "finetune/models/segment_blocks.py"
    assert {place.partition(":")[0] for _, place in inside} == {file}, inside
    assert sum(times for (why, _), times in inside.items() if why == "copy to the host") == steps, inside
