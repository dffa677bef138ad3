"""Proves that docs/inspect.md lists every kind of finding with the severities that its check gives."""

from __future__ import annotations

import re
from pathlib import Path

from finetune.inspection.checks import NAMES

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "inspect.md").read_text(encoding="utf-8")


def test_every_kind_is_documented() -> None:
    listed = re.findall(r"^\| `([a-z-]+)` \| (?:error|warn|info)", PAGE, re.M)
    declared = []
    for name in NAMES:
        text = (ROOT / "finetune" / "inspection" / "checks" / f"{name}.py").read_text(encoding="utf-8")
        kinds = [kind.strip() for kind in text.removeprefix('"""').partition(":")[0].split(",")]
        assert all(f'"{kind}"' in text for kind in kinds), f"{name} declares a kind that it does not report"
        declared += kinds
    assert len(declared) == len(set(declared)) >= 20
    assert sorted(listed) == sorted(declared)
