"""Contradictions about how ranks share the work: batch sizes, split models, engines."""

from __future__ import annotations

from collections.abc import Iterator

from finetune.errors import Fault
from finetune.recipe.checks.context import CheckContext
from finetune.recipe.checks.deepspeed import DEEPSPEED_OFF
from finetune.recipe.engines import AUTO, ENGINES
from finetune.recipe.faults import nearest
from finetune.recipe.optimizers import OPTIMIZERS
from finetune.recipe.shelf import list_deepspeed_configs


def check_batch(context: CheckContext) -> Iterator[Fault]:
    """A fixed micro-batch and number of processes must divide the global batch."""
    batch, parallel = context.recipe.training.global_batch, context.recipe.parallel
    micro, processes = parallel.micro_batch, parallel.processes
    remedy = "micro_batch: auto, which distributes any batch over any number of ranks"
    rests = ("training.global_batch", "parallel.processes", "parallel.tensor", "parallel.pipeline")
    if not isinstance(micro, int):
        return
    if micro > batch:
        message = f"larger than training.global_batch ({batch})"
        yield context.fault("parallel.micro_batch", message, allowed=remedy, on=rests[:1])
    elif isinstance(processes, int) and batch % (micro * (replicas := max(1, processes // parallel.replica_size))):
        message = f"training.global_batch ({batch}) is not a multiple of micro_batch x replicas ({micro} x {replicas})"
        if parallel.replica_size == 1:
            message = message.replace("replicas", "processes")
        yield context.fault("parallel.micro_batch", message, allowed=remedy, on=rests)


def check_split(context: CheckContext) -> Iterator[Fault]:
    """A model is split one way, over a number of ranks that divides them all."""
    parallel = context.recipe.parallel
    ways = [way for way in ("tensor", "pipeline") if getattr(parallel, way) > 1]
    for way in ways:
        if way not in context.card.model.splits:
            known = (
                ", ".join(context.card.model.splits)
                or "none: use ZeRO-3 (deepspeed: zero3) for what one GPU cannot hold"
            )
            yield context.fault(f"parallel.{way}", f"the task {context.card.name} cannot be split so", allowed=known)
            return
    if len(ways) > 1:
        message = "parallel.tensor splits the model already"
        yield context.fault("parallel.pipeline", message, allowed="1, or tensor: 1", on=("parallel.tensor",))
    elif isinstance(parallel.processes, int) and parallel.processes % parallel.replica_size:
        message = f"{parallel.processes} processes are not a multiple of parallel.{ways[0]} ({parallel.replica_size})"
        allowed = f"a multiple of {parallel.replica_size}, or auto"
        yield context.fault("parallel.processes", message, allowed=allowed, on=(f"parallel.{ways[0]}",))


def check_engine(context: CheckContext) -> Iterator[Fault]:
    """An engine that exists, and goes with what `parallel.deepspeed` and `parallel.pipeline` ask for."""
    parallel = context.recipe.parallel
    name, names = parallel.engine, [AUTO, *ENGINES]
    if name == AUTO:
        return
    if name not in names:
        yield context.fault("parallel.engine", "no such engine", allowed=", ".join(names), near=nearest(name, names))
    elif name == "deepspeed" and parallel.deepspeed == DEEPSPEED_OFF:
        yield context.fault(
            "parallel.engine", "parallel.deepspeed is none", allowed="auto, or a DeepSpeed configuration"
        )
    elif (
        name != "deepspeed"
        and parallel.deepspeed != DEEPSPEED_OFF
        and context.draft.is_written(("parallel", "deepspeed"))
    ):
        message = f"parallel.deepspeed ({parallel.deepspeed}) is for the engine deepspeed"
        yield context.fault("parallel.engine", message, allowed="auto, deepspeed; or parallel.deepspeed: none")
    elif (name == "pipeline") != (parallel.pipeline > 1):
        message = f"parallel.pipeline is {parallel.pipeline}"
        yield context.fault("parallel.engine", message, allowed="auto; or the engine pipeline with two stages or more")


def check_tensor(context: CheckContext) -> Iterator[Fault]:
    """Layers are sliced under ZeRO-1, and not under adapters."""
    parallel = context.recipe.parallel
    if parallel.tensor == 1 or "tensor" not in context.card.model.splits:
        return
    if parallel.deepspeed != "zero1" and parallel.deepspeed in (DEEPSPEED_OFF, *list_deepspeed_configs()):
        message = f"parallel.tensor ({parallel.tensor}) is trained with DeepSpeed's AutoTP and ZeRO-1"
        yield context.fault("parallel.deepspeed", message, allowed="zero1, or tensor: 1", on=("parallel.tensor",))
    if context.recipe.adapter is not None:
        message = f"parallel.tensor ({parallel.tensor}) slices plain layers, not the layers of an adapter"
        allowed = "no adapter, or tensor: 1 with zero3 for a base that is too large"
        yield context.fault("adapter", message, allowed=allowed, on=("parallel.tensor",))


def check_pipeline(context: CheckContext) -> Iterator[Fault]:
    """A pipeline's stages are trained by plain PyTorch: no DeepSpeed engine, no loss scaling over stages."""
    parallel, training = context.recipe.parallel, context.recipe.training
    if parallel.pipeline == 1 or "pipeline" not in context.card.model.splits:
        return
    if parallel.deepspeed != DEEPSPEED_OFF:
        message = (
            f"the stages of parallel.pipeline ({parallel.pipeline}) are trained by plain PyTorch, not by DeepSpeed"
        )
        if context.draft.get(("parallel", "deepspeed")) is None:
            message += f" ({parallel.deepspeed} is the default)"
        yield context.fault("parallel.deepspeed", message, allowed=DEEPSPEED_OFF, on=("parallel.pipeline",))
    if training.precision == "fp16":
        message = "a pipeline does not scale losses over its stages"
        yield context.fault("training.precision", message, allowed="auto, fp32, bf16", on=("parallel.pipeline",))
    if OPTIMIZERS[training.optimizer].from_deepspeed:
        allowed = ", ".join(spec.name for spec in OPTIMIZERS.values() if not spec.from_deepspeed)
        message = "a pipeline takes torch's optimizers"
        yield context.fault("training.optimizer", message, allowed=allowed, on=("parallel.pipeline",))


def check_master_weights(context: CheckContext) -> Iterator[Fault]:
    """float32 masters are of bfloat16 weights, where one rank holds all of a model."""
    recipe, key = context.recipe, "parallel.master_weights"
    if recipe.parallel.master_weights is not True:
        return
    if recipe.parallel.pipeline > 1:
        yield context.fault(key, "a pipeline keeps float32 weights", allowed="false", on=("parallel.pipeline",))
    elif recipe.training.precision in ("fp32", "tf32", "fp16"):
        message = f"in {recipe.training.precision} there are no bfloat16 weights to keep masters of"
        yield context.fault(key, message, allowed="false", on=("training.precision",))
    elif recipe.model.dtype in ("float32", "float16"):
        message = f"weights in {recipe.model.dtype} need no masters"
        yield context.fault(key, message, allowed="false, or model.dtype: auto", on=("model.dtype",))
