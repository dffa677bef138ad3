"""Which names an output of `finetune predict` may have: known before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path

from finetune.data.values import lone_surrogate
from finetune.errors import UserError

EXTENSIONS = (".jsonl", ".csv", ".parquet")


def check_output_name(path: Path) -> None:
    """Raises: UserError for an extension that is none of EXTENSIONS, and for a name that is not UTF-8."""
    if lone_surrogate(str(path)) is not None:
        raise UserError("the name is not UTF-8", where=f"--output {path}", remedy="Give another --output.")
    if path.suffix.lower() not in EXTENSIONS:
        raise UserError(
            f"the extension {path.suffix!r} says no format that answers are written in",
            where=f"--output {path}",
            remedy=f"Use one of {', '.join(EXTENSIONS)}.",
        )
