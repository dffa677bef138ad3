"""Runs the fuzz tests with new random inputs for a given time: `python -m tests.fuzz [--minutes 10]`, part of `make soak`.

Every test has an equal share of the time (turns.py), and a line at the end: its inputs, and whether it found something. A
finding is printed with its input and the command that repeats it, which looks for the smallest such input for minutes.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

INPUTS = "40"  # of one turn: a few, so that every test has several turns with seeds of their own


def main(arguments: list[str] | None = None) -> int:
    """0 if every test was reached and nothing was found; 1 otherwise, also if an input took a minute."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("tests", nargs="*", default=[str(Path(__file__).parent)], help="files or tests")
    asked = parser.parse_args(arguments)
    os.environ["FINETUNE_FUZZ_INPUTS"] = INPUTS  # before the tests are imported

    import pytest
    from hypothesis import Phase, settings

    settings.register_profile(
        "turns", phases=(Phase.explicit, Phase.reuse, Phase.generate)
    )  # who repeats it shrinks it
    settings.load_profile("turns")

    from tests.fuzz.turns import Turns

    turns = Turns(60 * asked.minutes)
    without = [option for name in ("terminal", "cacheprovider", "timeout") for option in ("-p", f"no:{name}")]
    pytest.main([*asked.tests, *without, "--override-ini", "addopts=--import-mode=importlib"], plugins=[turns])
    found = [share for share in turns.shares if share.findings]
    missed = [share for share in turns.shares if not share.turns]
    inputs = sum(share.inputs for share in turns.shares)
    print(f"{len(turns.shares)} tests, {inputs:,} inputs, {len(found)} findings, {len(missed)} tests not reached")
    return 1 if found or missed or turns.broken or not turns.shares else 0


if __name__ == "__main__":
    sys.exit(main())
