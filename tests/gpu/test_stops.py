"""On CUDA: a training that a signal stops is resumed, in a new process, to the losses of one that nothing stopped; the layouts
of a recipe agree.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import yaml

from tests.faults import run_finetune
from tests.gpu.conftest import Ended, GpuRanks
from tests.gpu.language_model import STEPS, recipe, write_rows

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(170)]
STOPPED_AT = 5


@pytest.fixture(autouse=True)
def _rows(tmp_path: Path) -> None:
    write_rows(tmp_path)


@pytest.mark.parametrize(("engine", "precision", "apart"), [("none", "bf16", 1e-2), ("zero2", "fp32", 1e-4)])
def test_a_stopped_training_goes_on(gpu: GpuRanks, engine: str, precision: str, apart: float) -> None:
    sets = (f"parallel.deepspeed={engine}", f"training.precision={precision}")
    whole = gpu.train(recipe(), "run-whole", *sets)
    with pytest.raises(Ended, match="stopped"):
        gpu.train(recipe(), "run-stopped", *sets, signals={STOPPED_AT: (0, signal.SIGTERM)})
    resumed = gpu.train(recipe(), "run-stopped", *sets, resume="auto")
    assert [row["step"] for row in resumed.rows if row["split"] == "train"] == list(range(1, STEPS + 1))
    assert "resum" in resumed.said, resumed.said
    assert resumed.losses() == pytest.approx(whole.losses(), rel=apart)


def test_layouts_agree(tmp_path: Path) -> None:
    """On the CPU, as `finetune verify` does it wherever it runs."""
    values = recipe()
    values["model"]["config"] |= {"hidden_size": 64, "intermediate_size": 128}
    (tmp_path / "gpu.yaml").write_text(yaml.safe_dump(values))
    done = run_finetune(["verify", "gpu.yaml", "--steps", "2", "--processes", "2"], 160, folder=tmp_path)
    assert done.code == 0 and "the reference agree" in done.output, done.output
