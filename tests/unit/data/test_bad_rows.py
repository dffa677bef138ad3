"""Proves what the error for bad rows advises."""

from __future__ import annotations

import pytest

from finetune.data.bad_rows import ABSENT_FILES, BadRows
from finetune.errors import UserError

ABSENT = "image a.jpg cannot be opened: No such file or directory"


@pytest.mark.parametrize(
    ("reasons", "told"), [([ABSENT, ABSENT], True), ([ABSENT], False), ([ABSENT, "broken image b.jpg"], False)]
)
def test_absent_files_are_explained(reasons: list[str], told: bool) -> None:
    """A file whose pictures lie in another folder lacks all of them; one that lacks a picture has a picture less."""
    bad = BadRows("error", [(f"x.json:{line}", reason) for line, reason in enumerate(reasons)])
    with pytest.raises(UserError) as caught:
        bad.enforce_policy("train")
    assert caught.value.remedy.startswith(ABSENT_FILES) is told and "data.on_bad_row: skip" in caught.value.remedy
