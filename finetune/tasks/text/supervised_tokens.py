"""Which positions of a language model are learnt: found on the CPU, because a GPU that is asked makes its host wait.

Shapes: B rows, L tokens, V vocabulary, N learnt tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

    from finetune.tasks.task import Batch


def supervised_targets(labels: np.ndarray) -> dict[str, torch.Tensor]:
    """labels [B, L], -100 where nothing is learnt -> for a batch's targets, in the order of rows and tokens:

    "labels"; "places" int64 [N], where in the flattened logits [B * L, V] a learnt token is predicted, which is one
    before it; "wanted" int64 [N], the tokens.
    """
    import numpy as np
    import torch

    from finetune.models.losses import IGNORE

    following = np.full_like(labels, IGNORE)
    following[:, :-1] = labels[:, 1:]
    target_positions = np.flatnonzero(following != IGNORE)
    found = {"labels": labels, "places": target_positions, "wanted": following.reshape(-1)[target_positions]}
    return {name: torch.from_numpy(values) for name, values in found.items()}


def supervised_logits(outputs: Any, batch: Batch) -> torch.Tensor:
    """Logits [N, V] that predict the learnt tokens, from `outputs.logits` [B, L, V]."""
    return outputs.logits.flatten(0, 1).index_select(0, batch.targets["places"])
