"""Models without memory for their weights, to read names and shapes before anything is loaded. No torch until one is built."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def build_on_meta(build: Callable[[Any], Any], config: Any) -> nn.Module:
    """The model that `build`, such as its class, makes of a copy of `config`, with weights on the meta device."""
    import torch

    with torch.device("meta"):
        model: nn.Module = build(copy.deepcopy(config))
    return model
