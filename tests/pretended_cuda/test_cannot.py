"""The list of tests that a pretended device cannot pass names tests that exist, with a reason each."""

import ast
from pathlib import Path

from tests.pretended_cuda.cannot import CANNOT, SELECTED

GPU = Path(__file__).resolve().parents[1] / "gpu"


def test_every_entry_names_a_test():
    names = {
        f"{file.name}::{node.name}"
        for file in GPU.glob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    assert len(names) > 50 and CANNOT and SELECTED
    for name in (*(entry.test for entry in CANNOT), *SELECTED):
        name = name.partition("[")[0]
        assert name in names or any(other.startswith(name) for other in names if name.endswith("::")), name
    assert all(len(entry.reason) > 20 for entry in CANNOT)
    assert len({entry.test for entry in CANNOT}) == len(CANNOT)
