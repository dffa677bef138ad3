"""Inputs that somebody made with bad intent: nothing runs, nothing leaks, nothing hangs, and each is answered by a sentence.

HOSTILE_LOG=FILE writes a line of JSON for each, with its output and what it took.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.hostile import (
    attacks_asked,
    attacks_data,
    attacks_formats,
    attacks_launch,
    attacks_models,
    attacks_options,
    attacks_outputs,
    attacks_pages,
    attacks_paths,
    attacks_recipes,
    attacks_runs,
    attacks_settings,
    attacks_templates,
)
from tests.hostile.attack import MARK, Attack, Given, Place
from tests.hostile.conftest import RESULTS
from tests.hostile.running import SECRET, Outcome, Program

AREAS = {
    "run folders": (attacks_runs, attacks_pages),
    "model folders": (attacks_models, attacks_settings, attacks_asked),
    "outputs of predictions": (attacks_outputs,),
    "recipes": (attacks_recipes, attacks_paths),
    "data and images": (attacks_data, attacks_formats),
    "options and environments": (attacks_options,),
    "chat templates": (attacks_templates,),
    "launchers": (attacks_launch,),
}
ATTACKS = [(area, attack) for area, modules in AREAS.items() for module in modules for attack in module.attacks()]
OWN_CODES = re.compile(r"\x1b\[[0-9;]*m|\x1b\[2?K|\x1b\[1A|\x1b\[\?25[lh]|\r")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "security.md"
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
RAW = ("Traceback (most recent call last)", "This is a bug in finetune", "Fatal Python error")


def test_there_are_enough() -> None:
    assert len(ATTACKS) >= 160
    assert len({(area, attack.name) for area, attack in ATTACKS}) == len(ATTACKS)
    silent = [attack.name for _, attack in ATTACKS if not attack.says and attack.code >= 0]
    assert not silent, "an attack that expects no words cannot tell one refusal from another"
    assert any(attack.executed for _, attack in ATTACKS), "nothing shows that code which runs is seen"


def test_the_page_has_these_figures() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for area in AREAS:
        count = sum(one == area for one, _ in ATTACKS)
        assert f"\n| {area} | {count} |" in page, f"docs/security.md: {area} has {count} inputs"
    assert f"\n| all | {len(ATTACKS)} |" in page, f"docs/security.md: all are {len(ATTACKS)}"


@pytest.mark.parametrize(
    ("area", "attack"),
    ATTACKS,
    ids=[f"{area}-{attack.name}".encode("unicode_escape").decode()[:90] for area, attack in ATTACKS],
)
def test_it_is_refused_in_words(area: str, attack: Attack, program: Program, given: Given, tmp_path: Path) -> None:
    folder = tmp_path / "place"
    folder.mkdir()
    arguments = attack.make(Place(folder, given))
    outcome = program.run(attack, arguments, folder)
    wrong = faults(attack, outcome, folder)
    if log := os.environ.get("HOSTILE_LOG"):
        with Path(log).open("a", encoding="utf-8") as file:
            entry = {"area": area, "attack": attack.name, **asdict(outcome), "says": attack.says, "wrong": wrong}
            file.write(json.dumps({**entry, "output": outcome.output[-2000:]}) + "\n")
    RESULTS.setdefault(area, []).append(("; ".join(wrong), outcome.cpu))
    shown = outcome.output if len(outcome.output) < 1500 else f"{outcome.output[:300]!r} ... {outcome.output[-1200:]!r}"
    assert not wrong, f"{wrong} in {outcome.seconds} s\n{' '.join(arguments)[:300]!r}\n{shown!r}"


def faults(attack: Attack, outcome: Outcome, folder: Path) -> list[str]:
    found = []
    executed = bool(list(folder.rglob(MARK)))
    if executed and not attack.executed:
        found.append("executed")
    if attack.executed and not executed:
        found.append("wrong: its code did not run, so that this would not see it elsewhere")
    if SECRET in outcome.output or any(SECRET.encode() in path.read_bytes() for path in small_files(folder)):
        found.append("leaked")
    if outcome.hung:
        found.append("hung")
    if outcome.code != attack.code:
        found.append(f"wrong: exit code {outcome.code}")
    if any(sign in outcome.output for sign in RAW) or (outcome.code < 0 and outcome.code != attack.code):
        found.append("raw")
    if CONTROL.search(OWN_CODES.sub("", outcome.output)) or "\x1b[5;41m" in outcome.output:
        found.append("codes")
    if outcome.memory > attack.memory:
        found.append(f"memory: {outcome.memory >> 20} MiB")
    if not re.search(attack.says, " ".join(outcome.output.split())):
        found.append(f"wrong: it does not say {attack.says!r}")
    try:
        attack.check(folder)
    except (AssertionError, OSError, ValueError) as error:
        found.append(f"wrong: {error}")
    return found


def small_files(folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return [path for path in files if path.stat().st_size < 1 << 20]
