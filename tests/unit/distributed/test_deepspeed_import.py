"""Proves that DeepSpeed starts without torch's compiler, and that what it decorates with torch.compile still works."""

from __future__ import annotations

import subprocess
import sys
import types

import torch

from finetune.distributed.deepspeed_import import compiling_later

PROBE = """
import sys
from finetune.distributed.deepspeed_import import import_deepspeed
import_deepspeed()
import deepspeed.runtime.zero.muon.muon_optimizer
print(sorted(name for name in ("torch._inductor.compile_fx", "torch._inductor.lowering") if name in sys.modules))
"""


def test_deepspeed_does_not_load_the_compiler() -> None:
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
