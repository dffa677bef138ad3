"""What the tests of the whole application share: the data, one undisturbed run, and a pool of ranks of their own."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune.distributed.failure import Failure, read_failures
from tests.e2e import tiny
from tests.e2e.inside import train_here
from tests.faults import Finished, run_finetune
from tests.ranks import RankError, Ranks
from tests.warm_start import run_warm

MINUTES = 240  # a crowded machine


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Prepared data of these tests alone, shared by all their runs; what DeepSpeed has compiled stays where it is."""
    from finetune.distributed.prebuild import choose_cache

    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(choose_cache()))
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def temporary() -> Iterator[Path]:
    """A TMPDIR for trainings, which are to leave nothing in it. Its name is short, since sockets are made in it."""
    folder = Path(tempfile.mkdtemp(prefix="ends-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


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

    def train(
        self,
        ranks: int,
        run_dir: str | Path,
        *sets: str,
        recipe: str = "tiny.yaml",
        resume: str = "auto",
        signals: dict[Any, tuple[int, int]] | None = None,
    ) -> Path:
        """Train or go on; the run's folder. signals: step -> (rank, signal), see inside.py.

        Raises: Ended if the ranks say why they ended, RankError if they do not.
        """
        run = self.folder / run_dir
        try:
            self.pool.run(ranks, train_here, str(self.folder), recipe, str(run), list(sets), resume, signals or {})
        except RankError:
            failures = read_failures(run / "logs")
            if not failures:
                raise
            raise Ended(failures) from None
        return run


class Ended(AssertionError):
    """The ranks of a training said why they ended; the first one first."""

    def __init__(self, failures: list[Failure]) -> None:
        super().__init__("\n".join(f"rank {one.rank}: {one.to_error()}" for one in failures))
        self.failures = failures
        self.first = failures[0].to_error()


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
def finetune(pool: Ranks, workplace: Path) -> Callable[..., Finished]:
    """Run `finetune ARGS` to its end, in the workplace unless it is given a folder; in a fork, see tests/warm_start.py."""

    def run(*args: str, timeout: float = MINUTES, folder: Path = workplace) -> Finished:
        return run_warm(pool, args, timeout, folder=folder)

    return run
