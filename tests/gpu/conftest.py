"""Trainings on CUDA in processes that stay: each test worker starts one rank, and two where a test needs them, and all its
trainings run there, seconds apart instead of a start each.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune.distributed.failure import read_failures
from finetune.recipe.machine import has_cuda
from finetune.tasks import CARDS
from tests.e2e.inside import train_here
from tests.pretended_cuda.install import is_pretended
from tests.ranks import RankError, Ranks

SECONDS = 75  # of one training, the first one's imports included
LOADERS = 2  # processes that decode the pictures of a training: by itself it starts one for each core, to read eight
SWITCHED_OFF = "is switched off"  # what Telemetry says of a part that failed


@dataclass(frozen=True)
class Trained:
    """A run that ended well. rows: of metrics.jsonl. said: what rank 0 printed for people."""

    path: Path
    rows: list[dict[str, Any]]
    said: str

    def losses(self, split: str = "train") -> list[float]:
        return [row["loss"] for row in self.rows if row["split"] == split]

    def plan(self, part: str = "machine") -> dict[str, Any]:
        return json.loads((self.path / "plan.json").read_text())[part]


class GpuRanks:
    """`finetune train`, and functions of the tests, on ranks that have CUDA."""

    def __init__(self, pool: Ranks, folder: Path) -> None:
        self.pool, self.folder = pool, folder

    def train(
        self,
        values: dict[str, Any],
        name: str,
        *sets: str,
        ranks: int = 1,
        resume: str = "never",
        signals: dict[int, tuple[int, int]] | None = None,
        seconds: float = SECONDS,
    ) -> Trained:
        """Train a recipe given as plain values. sets: `key=value`. signals: see `train_here`. seconds: at most.

        Raises: AssertionError with what the ranks say if the training ends early.
        """
        run, recipe = self.folder / name, self.folder / f"{name}.yaml"
        if CARDS[values["task"]].batches.decodes:
            values = {**values, "data": {"workers": LOADERS, **values["data"]}}
        recipe.write_text(yaml.safe_dump(values))
        try:
            pool = self.pool.options(timeout=seconds)
            pool.run(ranks, train_here, str(self.folder), recipe.name, str(run), list(sets), resume, signals or {})
        except RankError as error:
            failures = read_failures(run / "logs")
            raise Ended("\n".join([*(f"rank {one.rank}: {one.to_error()}" for one in failures), str(error)])) from None
        lines = (run / "metrics.jsonl").read_text().splitlines()
        said = (run / "logs" / "said-0.txt").read_text()
        assert SWITCHED_OFF not in said, said
        return Trained(run, [json.loads(line) for line in lines], said)


class Ended(AssertionError):
    """A training ended before its last step."""


@pytest.fixture(scope="session")
def gpu_pool(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    from finetune.distributed.prebuild import choose_cache

    environment = {
        "TORCH_EXTENSIONS_DIR": str(choose_cache()),  # what DeepSpeed has compiled stays where it is
        "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")),  # prepared data: shared by the tests of this session
    }
    return pytestconfig.stash[POOL].options(open_group=False, timeout=SECONDS, environment=environment)


POOL = pytest.StashKey[Ranks]()


def pytest_configure(config: pytest.Config) -> None:
    """A rank imports torch while this process collects tests. Not in the process that only gives tests out (xdist)."""
    config.stash[POOL] = pool = Ranks(Path(tempfile.mkdtemp(prefix="gpu-ranks-")), gpu=True, pretended=is_pretended())
    gives_out = getattr(config.option, "dist", "no") != "no" and not hasattr(config, "workerinput")
    wanted = "not gpu" not in config.option.markexpr and not config.option.collectonly
    if has_cuda() and wanted and not gives_out:
        pool.start(1)


def pytest_unconfigure(config: pytest.Config) -> None:
    pool = config.stash[POOL]
    pool.close()
    shutil.rmtree(pool.folder, ignore_errors=True)


@pytest.fixture
def gpu(gpu_pool: Ranks, tmp_path: Path) -> GpuRanks:
    return GpuRanks(gpu_pool, tmp_path)
