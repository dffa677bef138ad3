"""Proves that imports inside are not slowed down by collections, and that functions that few call are imported when called."""

from __future__ import annotations

import gc
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune.distributed.quick_imports import quick_imports

LATER = """
import sys
from finetune.distributed.quick_imports import quick_imports
with quick_imports():
    from scipy.optimize import linear_sum_assignment
heavy = "scipy.optimize._optimize"
print("scipy.optimize" in sys.modules, heavy in sys.modules)
rows, columns = linear_sum_assignment([[4, 1, 3], [2, 0, 5], [3, 2, 2]])
print(columns.tolist(), heavy in sys.modules)
import scipy.optimize
from scipy.optimize import linear_sum_assignment as own
print(own([[1, 0], [0, 1]], maximize=True)[1].tolist() == linear_sum_assignment([[1, 0], [0, 1]], maximize=True)[1].tolist())
"""
AT_ONCE = """
from finetune.distributed.quick_imports import quick_imports
with quick_imports():
    import scipy.optimize as early
    from scipy.optimize import minimize_scalar
print(round(minimize_scalar(lambda value: (value - 2) ** 2).x, 3), callable(early.brentq))
import scipy.optimize
print(scipy.optimize.minimize_scalar is minimize_scalar, early.brentq is scipy.optimize.brentq)
"""
WITH_MODELS = """
import sys
from finetune.distributed.quick_imports import LATER, quick_imports
with quick_imports():
    import transformers.generation.utils, transformers.quantizers.auto, transformers.models.llama.modeling_llama
    from sklearn.metrics import roc_curve
print([name for name in ("pandas", "sklearn", "scipy.stats", "torchao", *LATER) if name in sys.modules])
print([values.tolist() for values in roc_curve([0, 1], [0.2, 0.7])][:2])
"""
BEFORE_A_MODEL = """
import sys
from finetune.app.workers.libraries import import_libraries
from finetune.distributed.quick_imports import quick_imports
from finetune.app.opening import open_recipe
with quick_imports():
    import_libraries(open_recipe(sys.argv[1], []).recipe)
before = set(sys.modules)
from transformers import LlamaConfig, LlamaForCausalLM
shape = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=32)
LlamaForCausalLM(LlamaConfig(**shape))
print("transformers.modeling_utils" in before, "torch._dynamo" in before)
print([name for name in sys.modules if name not in before and name.split(".")[0] in ("torch", "scipy", "sklearn", "pandas")])
"""
AT_EXIT = """
import atexit, gc, sys, types
atexit.register(lambda: print(gc.get_freeze_count() > 0))  # called last
from finetune.distributed.quick_imports import quick_imports
with quick_imports():
    builder = type("nb_type_0", (type,), {"__module__": sys.argv[1]})("builder", (), {})
    sys.modules["triton._C.libtriton"] = types.SimpleNamespace(ir=types.SimpleNamespace(builder=builder))
print(gc.get_freeze_count() > 0)
"""


@pytest.fixture(autouse=True)
def collecting() -> Iterator[None]:
    yield
    gc.enable()  # what is frozen stays so: tests/conftest.py freezes the session's objects


def run(script: str, *arguments: str) -> list[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
    ).stdout.splitlines()


def test_nothing_is_collected_inside_and_what_was_made_is_left_alone_after() -> None:
    before = gc.get_freeze_count()
    with quick_imports():
        assert not gc.isenabled()
        with quick_imports():
            pass
        assert not gc.isenabled()
    assert gc.isenabled() and gc.get_freeze_count() > before


def test_an_error_inside_ends_it() -> None:
    with pytest.raises(ImportError), quick_imports():
        raise ImportError
    assert gc.isenabled()


def test_who_switched_collections_off_keeps_them_off() -> None:
    gc.disable()
    with quick_imports():
        pass
    assert not gc.isenabled()


def test_the_solver_of_assignments_is_imported_when_it_is_called() -> None:
    assert run(LATER) == ["False False", "[1, 0, 2] True", "True"]


def test_other_names_of_its_module_are_there_at_once() -> None:
    assert run(AT_ONCE) == ["2.0 True", "True True"]


def test_models_come_without_the_libraries_that_few_trainings_call() -> None:
    assert run(WITH_MODELS) == ["[]", "[[0.0, 0.0, 1.0], [0.0, 1.0, 1.0]]"]


def test_a_model_is_built_from_what_was_imported_before_ranks_were_forked(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    (tmp_path / "rows.jsonl").touch()
    model = "{source: llama, init: config, tokenizer: 'train:300'}"
    recipe.write_text(
        f"name: one\ntask: causal_lm\nmodel: {model}\ndata: {{train: rows.jsonl}}\ntraining: {{global_batch: 1, epochs: 1}}\n"
    )
    assert run(BEFORE_A_MODEL, str(recipe)) == ["True True", "[]"]


def test_nanobind_finds_nothing_frozen_at_the_end() -> None:
    assert run(AT_EXIT, "pybind11_builtins") == ["True", "True"]
    assert run(AT_EXIT, "nanobind") == ["True", "False"]


def test_frames_say_where_they_are_without_their_source_unless_lines_are_asked_for() -> None:
    usual = inspect.getframeinfo
    frame = sys._getframe()
    with quick_imports():
        quick, asked = inspect.getframeinfo(frame), inspect.getframeinfo(frame, 1)
        by_stack = inspect.stack()[0]
    there = usual(frame, 0)
    assert (quick.filename, quick.function, quick.code_context) == (there.filename, there.function, None)
    assert asked.code_context is not None
    assert "quick, asked" in asked.code_context[0]
    assert by_stack.code_context is not None  # it asks for a line
    assert inspect.getframeinfo is usual


def test_torch_notes_the_same_place_of_an_operator() -> None:
    utilities = pytest.importorskip("torch._library.utils")
    with quick_imports():
        inside = utilities.get_source(1)
    outside = utilities.get_source(1)
    line = sys._getframe().f_lineno
    assert inside.rsplit(":", 1) == [__file__, str(line - 2)]
    assert outside.rsplit(":", 1) == [__file__, str(line - 1)]
