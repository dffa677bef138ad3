"""What the tests of the whole application share: the data, one undisturbed run, and a pool of ranks of their own."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import tiny
from tests.faults import Finished, run_finetune
from tests.ranks import Ranks

MINUTES = 240  # a crowded machine


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Prepared data of these tests alone, shared by all their runs."""
    folder, before = tmp_path_factory.mktemp("cache"), os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    yield folder
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data, and tiny.yaml."""
    folder = tmp_path_factory.mktemp("workplace")
    tiny.write_data(folder)
    tiny.write_recipe(folder)
    return folder


@pytest.fixture(scope="session")
def undisturbed(workplace: Path) -> tuple[Path, Finished]:
    """The run that nothing disturbs: 2 ranks, ZeRO-2, dropout, W&B offline. Its folder, and how it ended."""
    finished = run_finetune(
        ["train", "tiny.yaml", "--run-dir", "undisturbed", "--set", "tracking.wandb=offline"], MINUTES, folder=workplace
    )
    assert finished.code == 0, finished.output
    return workplace / "undisturbed", finished


class Workers:
    """`finetune train` on forked ranks, as a launcher would start it: seconds instead of tens of them."""

    def __init__(self, pool: Ranks, folder: Path) -> None:
        self.pool, self.folder = pool, folder

    def train(self, ranks: int, recipe: str, run_dir: Path, *sets: str, **options: Any) -> Path:
        """Raises: RankError where a rank ended; what it said is in the failure files of the run's logs."""
        self.pool.run(ranks, train_here, str(self.folder), recipe, str(run_dir), list(sets), options)
        return run_dir


def train_here(folder: str, recipe: str, run_dir: str, sets: list[str], options: dict[str, Any]) -> None:
    """On a rank: what `python -m finetune train` does inside torchrun."""
    os.chdir(folder)
    from finetune.app import train as verb

    resume = options.get("resume", "auto")
    verb.train(recipe, sets=sets, processes=None, run_dir=Path(run_dir), resume=resume, restarts=0)


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Ranks]:
    """Ranks of these tests alone: workers take over signals and standard error, which other tests would miss."""
    found = Ranks(tmp_path_factory.mktemp("workers"))
    yield found.options(open_group=False, timeout=MINUTES)
    found.close()


@pytest.fixture(scope="session")
def workers(pool: Ranks, workplace: Path) -> Workers:
    return Workers(pool, workplace)


@pytest.fixture(scope="session")
def finetune(workplace: Path) -> Callable[..., Finished]:
    """Run `python -m finetune ARGS` in the workplace to its end."""

    def run(*args: str, timeout: float = MINUTES, **options: Any) -> Finished:
        return run_finetune(list(args), timeout, folder=workplace, **options)

    return run
