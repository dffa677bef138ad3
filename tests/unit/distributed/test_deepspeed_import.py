"""Proves that a rank and DeepSpeed start without what is needed later, and that what is decorated with torch.compile works."""

from __future__ import annotations

import os
import subprocess
import sys
import types

import pytest
import torch

from finetune.distributed.deepspeed_import import ON_CPU
from finetune.distributed.late_compilation import compiling_later

HEAVY = (
    "torch._inductor.compile_fx",
    "torch._inductor.lowering",
    "sklearn",
    "pandas",
    "pyarrow",
    "scipy.optimize",
    "matplotlib",
)
PROBE = f"""
import sys
from finetune.distributed.deepspeed_import import import_deepspeed
from finetune.distributed.quick_imports import quick_imports
with quick_imports():
    import finetune.app.workers.train
    import finetune.tasks.causal_lm.task
    import_deepspeed()
import deepspeed.runtime.zero.muon.muon_optimizer
print(sorted(name for name in {HEAVY} if name in sys.modules))
"""


def test_a_rank_and_deepspeed_start_without_the_compiler_and_libraries_of_later() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_what_is_decorated_inside_is_compiled_at_its_first_call(monkeypatch) -> None:
    compiled: list[tuple[str, dict]] = []

    def compile_now(model, **options):
        compiled.append((model.__name__, options))
        return lambda value: model(value) + 100

    monkeypatch.setattr(torch, "compile", compile_now)
    with compiling_later():

        @torch.compile
        def plain(value):
            """Documented."""
            return value

        @torch.compile(dynamic=True)
        def with_options(value):
            return value

        later = torch.compile(model=lambda value: value)
    assert torch.compile is compile_now and compiled == []
    assert (plain.__name__, plain.__doc__) == ("plain", "Documented.")
    assert isinstance(plain, types.FunctionType)
    assert [plain(1), plain(2), with_options(3), later(4)] == [101, 102, 103, 104]
    assert compiled == [("plain", {}), ("with_options", {"dynamic": True}), ("<lambda>", {})]


def test_modules_are_compiled_as_ever(monkeypatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda model, **options: ("compiled", model))
    layer = torch.nn.Linear(1, 1)
    with compiling_later():
        assert torch.compile(layer) == ("compiled", layer)


@pytest.mark.parametrize(("rank", "times"), [("0", 1), ("1", 0)])
def test_rank_0_alone_says_that_there_is_no_gpu(rank: str, times: int) -> None:
    code = "from finetune.distributed.deepspeed_import import import_deepspeed; import_deepspeed()"
    env = {**os.environ, "RANK": rank, "CUDA_VISIBLE_DEVICES": ""}
    env.pop("DS_ACCELERATOR", None)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert (done.stdout + done.stderr).count(ON_CPU) == times
