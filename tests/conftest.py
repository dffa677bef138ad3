"""Fixtures that every test may ask for, and the reasons for which a test is skipped."""

import gc
import os
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # `tests.ranks` and, in a bare checkout, `finetune`

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks a hub
os.environ.setdefault("WANDB_MODE", "offline")

from tests.ranks import Ranks  # noqa: E402


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Processes with a gloo group: `ranks.run(2, function, *args)`; see tests/ranks.py."""
    from finetune.distributed.prebuild import choose_cache

    choose_cache()  # before a test moves XDG_CACHE_HOME: what DeepSpeed has compiled stays where it is
    pool = Ranks(tmp_path_factory.mktemp("ranks"))
    yield pool
    pool.close()


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for this test alone; the folder that holds it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; tests that need it are skipped where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data here: {folder} does not exist")
    return folder


@pytest.fixture
def sighup_heard() -> Iterator[None]:
    """SIGHUP as in a terminal, also where nohup or a service started the tests with it ignored, as children inherit."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What modules and collected tests are made of stays until the end: collections of garbage need not walk it again and
    again, which is half of the processor time of collecting, and some of every test's.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--pretend-cuda",
        action="store_true",
        help="a CUDA device pretended on the CPU, for tests of the marker gpu (tests/pretended_cuda)",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.option.pretend_cuda:
        from tests.pretended_cuda import install, plugin

        install.install()
        config.pluginmanager.register(plugin)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs CUDA: torch.cuda.is_available() is False here")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport]:
    """Show what the ranks printed below a test that failed."""
    report = yield
    pool = getattr(item, "funcargs", {}).get("ranks")
    if report.failed and isinstance(pool, Ranks) and (text := pool.output()):  # a parameter may have that name, too
        report.sections.append(("output of the ranks", text))
    return report
