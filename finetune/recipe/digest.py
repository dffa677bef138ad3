"""One hash for what a recipe trains: two recipes with the same digest give the same numbers, wherever they run."""

from __future__ import annotations

import hashlib
import json

from finetune.recipe.recipe import Recipe

NOT_TRAINING = {"name", "parallel", "tracking", "checkpoint"}


def training_digest(recipe: Recipe) -> str:
    """16 hex digits over all but the machine (parallel), the telling (tracking), and the keeping (checkpoint)."""
    tree = recipe.model_dump(mode="json", exclude=NOT_TRAINING)
    text = json.dumps(tree, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
