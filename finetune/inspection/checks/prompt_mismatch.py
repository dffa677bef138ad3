"""prompt-mismatch: the prompt that inference gives the model is not how the training text begins."""

from __future__ import annotations

from finetune.inspection.findings import Finding
from finetune.inspection.inspection import Inspection, report_rows


def check(inspection: Inspection) -> list[Finding]:
    """Compares tokens, for a sample of rows."""
    differing = {one.row: one for one in inspection.prompts if not one.same}
    decode = inspection.artifacts.processor.decode if differing else None

    def note(_: object, row: int) -> str:
        one = differing[row]
        assert decode is not None
        trained, given = decode(one.trained[one.at : one.at + 8]), decode(one.prompt[one.at : one.at + 8])
        return f"token {one.at}: training goes on with {trained!r}, the prompt with {given!r}"

    return report_rows(
        "prompt-mismatch",
        "warn",
        "prompts at inference differ from the beginning of the training text, so the model is prompted in another way "
        "than in training",
        [(inspection.train, row) for row in differing],
        note,
        remedy="Check what the chat template adds with add_generation_prompt.",
        sampled=f"{len(inspection.prompts):,} random rows of train" if inspection.prompts else "",
    )
