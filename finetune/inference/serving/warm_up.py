"""Answers one made-up row before the first real one, so that nothing is allocated, compiled or found broken on its time."""

from __future__ import annotations

import io
from typing import Any

from finetune.inference.answering import Chunk
from finetune.inference.serving.served_model import ServedModel
from finetune.recipe.roles import example_row


def warm_up(model: ServedModel) -> None:
    """Answer a row. A row that does not fit the task is no fault: real ones say what is wrong with them."""
    facts = model.facts
    row = {facts.image: _gray_image()} if facts.image else example_row(facts.roles, facts.line_role)
    examples = [item for item in model.encode([row]) if isinstance(item, dict)]
    for _ in model.answerer.run([Chunk((0, 0), [{**example, "id": 0} for example in examples])] if examples else []):
        pass


def _gray_image() -> Any:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (64, 64), "gray").save(file, "PNG")
    return file.getvalue()
