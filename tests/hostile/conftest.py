"""The run, the models and the process that the attacks start from, and the table of what became of them."""

from __future__ import annotations

import pytest

from tests.e2e import tiny
from tests.hostile.attack import Given
from tests.hostile.running import Program

RESULTS: dict[str, list[tuple[str, str]]] = {}  # area -> (attack, what was wrong or "")


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    return Program(tmp_path_factory.mktemp("program"))


@pytest.fixture(scope="session")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    from tests.hostile.making import make_llama, make_run

    folder = tmp_path_factory.mktemp("given")
    tiny.write_data(folder)
    tiny.write_weights(folder / "bert")
    make_llama(folder / "llama")
    make_run(folder)
    return Given(folder / "run", folder / "bert", folder / "llama")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not RESULTS:
        return
    kinds = ("executed", "leaked", "hung", "raw", "codes", "memory", "wrong")
    terminalreporter.section("hostile inputs")
    for area, found in RESULTS.items():
        counts = ", ".join(f"{kind} {sum(kind in wrong for _, wrong in found)}" for kind in kinds)
        terminalreporter.line(f"{area:10} {len(found):4} tried: {counts}")
    terminalreporter.line(f"{'all':10} {sum(map(len, RESULTS.values())):4} tried")
