"""Inputs that somebody made with bad intent: nothing runs, nothing leaks, nothing hangs, and each is answered by a sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.hostile import attacks_data, attacks_models, attacks_recipes, attacks_runs, attacks_templates
from tests.hostile.attack import MARK, Attack, Given, Place
from tests.hostile.conftest import RESULTS
from tests.hostile.running import SECRET, Outcome, Program

AREAS = {
    "runs": attacks_runs,
    "models": attacks_models,
    "recipes": attacks_recipes,
    "data": attacks_data,
    "templates": attacks_templates,
}
ATTACKS = [(area, attack) for area, module in AREAS.items() for attack in module.attacks()]
OWN_CODES = re.compile(r"\x1b\[[0-9;]*m|\x1b\[2?K|\x1b\[1A|\x1b\[\?25[lh]|\r")
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
RAW = ("Traceback (most recent call last)", "This is a bug in finetune", "Fatal Python error")


def test_there_are_enough() -> None:
    assert len(ATTACKS) >= 120
    assert len({(area, attack.name) for area, attack in ATTACKS}) == len(ATTACKS)


@pytest.mark.parametrize(
    ("area", "attack"),
    ATTACKS,
    ids=[f"{area}-{attack.name}".encode("unicode_escape").decode()[:90] for area, attack in ATTACKS],
)
def test_it_is_refused_in_words(area: str, attack: Attack, program: Program, given: Given, tmp_path: Path) -> None:
    folder = tmp_path / "place"
    folder.mkdir()
    arguments = attack.make(Place(folder, given))
    outcome = program.run(arguments, folder, seconds=attack.seconds, stop_after=attack.stop_after)
    wrong = faults(attack, outcome, folder)
    RESULTS.setdefault(area, []).append((attack.name, "; ".join(wrong)))
    shown = outcome.output if len(outcome.output) < 1500 else f"{outcome.output[:300]!r} ... {outcome.output[-1200:]!r}"
    assert not wrong, f"{wrong} in {outcome.seconds} s\n{' '.join(arguments)[:300]!r}\n{shown!r}"


def faults(attack: Attack, outcome: Outcome, folder: Path) -> list[str]:
    found = []
    if list(folder.rglob(MARK)):
        found.append("executed")
    if SECRET in outcome.output or any(SECRET.encode() in path.read_bytes() for path in small_files(folder)):
        found.append("leaked")
    if outcome.hung:
        found.append("hung")
    if outcome.code not in attack.codes:
        found.append(f"wrong: exit code {outcome.code}")
    if any(sign in outcome.output for sign in RAW) or (outcome.code < 0 and outcome.code not in attack.codes):
        found.append("raw")
    if CONTROL.search(OWN_CODES.sub("", outcome.output)) or "\x1b[5;41m" in outcome.output:
        found.append("codes")
    if outcome.memory > attack.memory:
        found.append(f"memory: {outcome.memory >> 20} MiB")
    if attack.says and not re.search(attack.says, " ".join(outcome.output.split())):
        found.append(f"wrong: it does not say {attack.says!r}")
    try:
        attack.check(folder)
    except AssertionError as error:
        found.append(f"wrong: {error}")
    return found


def small_files(folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return [path for path in files if path.stat().st_size < 1 << 20]
