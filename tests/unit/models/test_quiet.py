"""Proves that what libraries say about packages that nothing here needs does not reach the terminal."""

from __future__ import annotations

import subprocess
import sys

import pytest


def test_importing_peft_says_nothing() -> None:
    pytest.importorskip("bitsandbytes")
    program = "import finetune.models.adapters, bitsandbytes.backends.cpu.ops as ops; ops.logger.warning('no kernels')"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "no kernels" not in ran.stderr + ran.stdout
