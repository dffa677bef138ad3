"""The checks of an inspection: every file here has a function `check(inspection)` that gives findings, and runs."""

from __future__ import annotations

import importlib
import pkgutil

from finetune.inspection.findings import Finding, sort_findings
from finetune.inspection.inspection import Inspection

NAMES = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def run_checks(inspection: Inspection) -> list[Finding]:
    """The findings of all checks, the most severe first."""
    found: list[Finding] = []
    for name in NAMES:
        found += importlib.import_module(f"{__name__}.{name}").check(inspection)
    return sort_findings(found)
