"""The run, the models and the process that the attacks start from, and the table of what became of them."""

from __future__ import annotations

import pytest

from tests.e2e import tiny
from tests.hostile.attack import Given
from tests.hostile.running import Program

RESULTS: dict[str, list[tuple[str, float]]] = {}  # area -> (what was wrong or "", seconds of processors)


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    return Program(tmp_path_factory.mktemp("program"))


@pytest.fixture(scope="session")
def given(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Given:
    from tests.hostile.making import make_llama, make_predictions, make_resnet, make_run

    folder = tmp_path_factory.mktemp("given")
    tiny.write_data(folder)
    tiny.write_weights(folder / "bert")
    make_llama(folder / "llama")
    make_resnet(folder / "resnet")
    make_run(folder)
    program.call(make_predictions, folder)
    return Given(folder / "run", folder / "bert", folder / "llama", folder / "predictions", folder / "resnet")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not RESULTS:
        return
    kinds = ("executed", "leaked", "hung", "raw", "codes", "memory", "wrong")
    terminalreporter.section("hostile inputs")
    for area, found in RESULTS.items():
        counts = ", ".join(f"{kind} {sum(kind in wrong for wrong, _ in found)}" for kind in kinds)
        terminalreporter.line(f"{area:15} {len(found):4} tried: {counts}")
    everything = [one for found in RESULTS.values() for one in found]
    seconds = sum(cpu for _, cpu in everything)
    terminalreporter.line(f"{'all':15} {len(everything):4} tried in {seconds:.0f} s of processor time")
