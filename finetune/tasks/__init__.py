"""All tasks by name: each folder here that holds a card.py is one. Importing this needs neither torch nor transformers."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.recipe.card import TaskCard

if TYPE_CHECKING:
    from finetune.tasks.task import Task


def _find_cards() -> dict[str, TaskCard]:
    folders = sorted(card.parent.name for card in Path(__file__).parent.glob("*/card.py"))
    return {name: importlib.import_module(f"finetune.tasks.{name}.card").CARD for name in folders}


CARDS: dict[str, TaskCard] = _find_cards()


def load_task(name: str) -> Task:
    """The task `name`, one of CARDS; imports torch and transformers."""
    return importlib.import_module(f"finetune.tasks.{name}.task").TASK
