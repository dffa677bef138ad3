"""Which engine trains: what `parallel.engine` says, or what `parallel.deepspeed` and `parallel.pipeline` imply."""

from __future__ import annotations

from finetune.recipe.engines import AUTO
from finetune.recipe.parallel import ParallelSection

DEEPSPEED_OFF = "none"


def choose_engine(parallel: ParallelSection) -> str:
    """A name in `recipe/engines.py`. The one place that resolves `parallel.engine: auto`."""
    if parallel.engine != AUTO:
        return parallel.engine
    if parallel.pipeline > 1:
        return "pipeline"
    return "ddp" if parallel.deepspeed == DEEPSPEED_OFF else "deepspeed"


def deepspeed_name(parallel: ParallelSection) -> str | None:
    """The DeepSpeed configuration in use; None where another engine trains."""
    return parallel.deepspeed if choose_engine(parallel) == "deepspeed" else None
