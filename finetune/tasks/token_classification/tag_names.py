"""Names of tags: what they say about entities. Tags that are numbers say nothing, so no entity figure is computed of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from finetune.data.prepare.label_survey import look_alike_notes
from finetune.errors import UserError
from finetune.metrics.spans import OUTSIDE, are_nameless
from finetune.planning.plan import Plan
from finetune.tasks.choice import BEST_METRIC
from finetune.tasks.facts import Facts
from finetune.tasks.token_classification.card import CARD

ENTITY_METRICS = ("entity_f1", "entity_precision", "entity_recall", "per_entity")
INSTEAD = "word_accuracy"
LIKE_PREFIX = re.compile(r"[bi][-_:/.]|[BI][_:/.]")  # of tags that entity figures do not read as prefixed
PREFIXES = ("B-", "I-", "E-", "S-", "L-", "U-")


def settle_metrics(plan: Plan, names: Sequence[str], facts: Facts) -> dict[str, Any]:
    """Settings of the artifacts: without names of tags, word accuracy chooses the best checkpoint in place of entity F1.

    Raises: UserError if the recipe asks for entity figures other than by default.
    """
    metrics = plan.training.metrics
    asked = [name for name in metrics if name in ENTITY_METRICS]
    if not asked or not are_nameless(names):
        return {}
    remedy = "Give their names in the order of the numbers, such as options.labels: [O, B-PER, I-PER]."
    listed = ", ".join(names[:12])
    if tuple(metrics) != tuple(CARD.metrics.default):
        raise UserError(
            f"the tags have no names ({listed}), so it is unknown which of them is O: {', '.join(asked)} cannot be computed",
            where="evaluation.metrics",
            remedy=remedy,
        )
    chooses = f", and {INSTEAD} chooses the best checkpoint" if plan.training.best_metric in asked else ""
    facts.notes.append(
        f"THE TAGS HAVE NO NAMES ({listed}), so it is unknown which of them is O: {', '.join(asked)} are left out{chooses}. "
        + remedy
    )
    return {BEST_METRIC: INSTEAD} if chooses else {}


def tag_notes(names: Sequence[str], column: str) -> list[str]:
    """Tags that look alike, and slips of the pen for O."""
    notes = look_alike_notes(names, column)
    slips = [name for name in OUTSIDE if name in names and name != "O"]
    if slips and any(name.startswith(PREFIXES) for name in names):
        written = " and ".join(map(repr, slips))
        notes.append(f"{column}: {written} among the tags: counted as O, outside of any entity, but a tag of its own")
    like = [name for name in names if LIKE_PREFIX.match(name)]
    if len(like) > 1 and not any(name.startswith(PREFIXES) for name in names):
        notes.append(
            f"{column}: no tag begins with B- or I-, so each tag is an entity type of its own in the entity figures; "
            f"write {', '.join(like[:4])} as B-NAME and I-NAME if they say where entities begin and go on"
        )
    return notes
