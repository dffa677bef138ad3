"""An engine by its name in `recipe/engines.py`."""

from __future__ import annotations

from torch import nn

from finetune.distributed.engines.engine import Engine, EngineOptions, MakeOptimizer
from finetune.distributed.session import Session
from finetune.recipe.engines import ENGINES
from finetune.recipe.targets import load_target


def open_engine(
    name: str, session: Session, module: nn.Module, make_optimizer: MakeOptimizer | None, options: EngineOptions
) -> Engine:
    """All ranks call it. module: on the CPU, or already sharded by ZeRO-3's load.

    make_optimizer: called once the engine has wrapped the module; None opens the engine for inference, without memory
    for an optimizer or gradients.
    """
    named = ENGINES[name].opener
    opener = load_target(named) if isinstance(named, str) else named
    engine: Engine = opener(session, module, make_optimizer, options)
    return engine
