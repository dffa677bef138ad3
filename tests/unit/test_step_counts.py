"""A training step takes no more operators, bytes moved and memory than committed: what costs a GPU time shows without one.

After an improvement, or a new pin of torch or transformers: python -m benchmarks.step_counts --write
"""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from benchmarks.step_counts import FIGURES, KINDS, count_step

TOLERANCE = 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_takes_no_more_than_before(kind: str) -> None:
    stored = json.loads(FIGURES.read_text())
    here = {"torch": torch.__version__.partition("+")[0], "transformers": transformers.__version__}
    if here != stored["versions"]:
        pytest.skip(f"figures are of {stored['versions']}, this is {here}")
    found = count_step(*KINDS[kind])
    assert found.keys() == stored["figures"][kind].keys() and len(found) == 3
    for name, value in found.items():
        limit = stored["figures"][kind][name]
        assert value <= limit * (1 + TOLERANCE), f"{name}: {value:,}, {value / limit - 1:.1%} more than committed"
        assert value >= limit * 0.9, (
            f"{name}: {value:,}, {1 - value / limit:.1%} less than committed: write new figures"
        )
