"""On CUDA: what the program says of the GPU and asks of its memory: `doctor`, a model whose layers do not fit, a GPU that is
not there, memory of the host that is pinned.
"""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import finetune
from finetune.app.asked_plan import choose_device
from finetune.app.doctor import examine
from finetune.errors import UserError
from finetune.training.pinned_memory import PinnedMemory
from finetune.training.staging import Staging
from tests.distributed.test_slices import PROMPTS, write_model
from tests.e2e.inside import train_here
from tests.gpu.conftest import GpuRanks
from tests.gpu.language_model import recipe, write_rows
from tests.pretended_cuda.install import is_pretended

pytestmark = pytest.mark.gpu


def test_doctor_names_the_gpu() -> None:
    (found,) = (one for one in examine() if one.subject == "GPU 0")
    assert found.state == "ok" and "GiB" in found.fact and torch.cuda.get_device_name(0) in found.fact


def test_a_gpu_that_is_not_there_is_refused() -> None:
    count = torch.cuda.device_count()
    with pytest.raises(UserError, match=f"sees {count} GPU"):
        choose_device(f"cuda:{count}")
    assert choose_device("cuda:0") == choose_device(None) == torch.device("cuda", 0)
    assert choose_device("cpu").type == "cpu"


@pytest.mark.parametrize("replies", [False, True], ids=["classes", "replies"])
def test_layers_that_wait_in_main_memory_say_what_the_whole_model_says(tmp_path: Path, replies: bool) -> None:
    """The GPU holds some of the layers; accelerate brings the others there when they are computed."""
    folder = write_model(tmp_path / "model", replies=replies)
    options: dict[str, Any] = {"new_tokens": 6} if replies else {}
    whole = finetune.load(folder, precision="fp32")
    size = sum(weight.numel() * weight.element_size() for weight in whole.asked.module.parameters())
    spread = finetune.load(folder, precision="fp32", layers=[0], memory={0: size * 4 // 5, "cpu": 4 * size})
    places = {str(place) for place in spread.asked.module.hf_device_map.values()}
    assert places == {"0", "cpu"}, places
    assert spread.asked.device == torch.device("cuda", 0)
    answers, wanted = spread.predict(PROMPTS, **options), whole.predict(PROMPTS, **options)
    for one, other in zip(answers, wanted, strict=True):
        name = "text" if replies else "label"
        assert one[name] == other[name]
        assert replies or one["score"] == pytest.approx(other["score"], abs=1e-4)


def test_parts_are_copied_to_memory_that_the_gpu_writes_to() -> None:
    """The second save reuses the buffers of the first; where the system pins no more, copies are right all the same."""
    staging = Staging(torch.device("cuda"))
    weights = [{f"w{part}": torch.full((3000 + part,), float(part), device="cuda") for part in range(3)}]
    first = staging.copy(weights)
    assert all(values.is_cuda is False and values.is_pinned() for values in first[0].values())
    addresses = [values.data_ptr() for values in first[0].values()]
    for values in weights[0].values():
        values.add_(1.0)
    second = staging.copy(weights)
    assert [values.data_ptr() for values in second[0].values()] == addresses
    assert all(torch.equal(second[0][name], values.cpu()) for name, values in weights[0].items())
    staging.clear()
    assert not staging.is_filled


def test_memory_that_cannot_be_registered_is_allocated_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.training.pinned_memory._register", lambda memory: False)
    memory = PinnedMemory(4096)
    assert memory.bytes.is_pinned() and memory.bytes.numel() == 4096
    memory.free()
    assert memory.bytes.numel() == 0


def train_in_little_memory(folder: str, run: str, room: int) -> None:
    """On a GPU of `room` bytes more than it holds already."""
    from tests.pretended_cuda.marks import MEMORY

    before = MEMORY.total
    try:
        MEMORY.total = MEMORY.allocated + room
        train_here(folder, "small.yaml", run, [], "never", {})
    finally:
        MEMORY.total = before


@pytest.mark.skipif(
    not is_pretended(), reason="the memory of a real GPU cannot be made this small: pytest --pretend-cuda"
)
def test_micro_batches_are_as_large_as_memory_allows(gpu: GpuRanks) -> None:
    """A pass that runs out of memory is survived, and the size before it is taken."""
    write_rows(gpu.folder)
    values = recipe(parallel={"deepspeed": "none"}, options={"max_length": 128})
    values["training"] |= {"global_batch": 64, "steps": 3, "precision": "fp32"}
    run = gpu.folder / "run"
    (gpu.folder / "small.yaml").write_text(json.dumps(values))
    gpu.pool.run(1, train_in_little_memory, str(gpu.folder), str(run), 16 * 2**20)
    capacity = json.loads((run / "plan.json").read_text())["machine"]["capacity"]
    said = (run / "logs" / "said-0.txt").read_text()
    assert 128 <= capacity < 1024, said
    assert "measured tokens per second" in said and "memory" in said, said


@pytest.mark.skipif(
    not is_pretended(), reason="the memory of a real GPU cannot be made this small: pytest --pretend-cuda"
)
def test_rows_that_do_not_fit_together_are_answered_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a row that does not fit alone is told so, while the model goes on to answer others."""
    from tests.pretended_cuda.marks import MEMORY

    loaded = finetune.load(write_model(tmp_path / "model", replies=False), precision="fp32")
    rows = [f"{first} {second}" for first in PROMPTS for second in PROMPTS]
    torch.cuda.reset_peak_memory_stats()
    whole = loaded.predict(rows)
    gc.collect()
    held, refused = torch.cuda.memory_allocated(), MEMORY.refused
    taken = torch.cuda.max_memory_allocated() - held
    monkeypatch.setattr(MEMORY, "total", held + taken * 2 // 3)
    assert [one["label"] for one in loaded.predict(rows)] == [one["label"] for one in whole]
    assert MEMORY.refused > refused
    gc.collect()
    monkeypatch.setattr(MEMORY, "total", MEMORY.allocated + 600)
    errors = [one["error"]["kind"] for one in loaded.predict(rows[:2])]
    assert errors == ["out_of_memory"] * 2
    monkeypatch.undo()
    assert [one["label"] for one in loaded.predict(rows)] == [one["label"] for one in whole]
