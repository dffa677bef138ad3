"""Contradictions in a recipe whose values are each valid. One small function per contradiction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import Fault, UserError
from finetune.recipe.card import TaskCard
from finetune.recipe.data import DataSection
from finetune.recipe.deepspeed import Asked, config_faults, read_deepspeed_config, rounding_keys
from finetune.recipe.draft import Draft
from finetune.recipe.engines import AUTO, ENGINES
from finetune.recipe.faults import nearest, show_value
from finetune.recipe.machine import has_cuda
from finetune.recipe.optimizers import OPTIMIZERS
from finetune.recipe.paths import is_pattern, is_present, path_keys
from finetune.recipe.recipe import Recipe
from finetune.recipe.shelf import find_deepspeed_config, list_deepspeed_configs, looks_like_file
from finetune.recipe.trackers import TRACKERS
from finetune.recipe.yaml import KeyPath

DEEPSPEED_OFF = "none"
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
CUDA_PRECISIONS = ("fp16", "tf32")
DERIVED_PRECISIONS = ("bf16", "fp32")  # what training.precision may come to where it is not said


@dataclass(frozen=True)
class CheckContext:
    """A recipe whose values are valid, its task, and the draft, which knows where each value was written."""

    recipe: Recipe
    card: TaskCard
    draft: Draft

    def fault(
        self, key: str | KeyPath, message: str, *, allowed: str = "", near: str = "", on: tuple[str, ...] = ()
    ) -> Fault:
        """A fault at a key, with its value. on: other keys that it rests on."""
        path: KeyPath = tuple(key.split(".")) if isinstance(key, str) else key
        written = self.draft.get(path)
        value = "" if written is None else show_value(written, str(path[-1]))
        return Fault(self.draft.place(path), self.draft.shown(path), message, value, allowed, near, on)


Check = Callable[[CheckContext], Iterator[Fault]]


def contradictions(context: CheckContext, *, here: bool) -> list[Fault]:
    """Every contradiction. here: also those that depend on this machine, such as a missing file, or fp16 without CUDA."""
    checks = ALWAYS + HERE if here else ALWAYS
    return [fault for check in checks for fault in check(context)]


def warnings(context: CheckContext) -> list[str]:
    """What is allowed but rarely intended."""
    recipe, place = context.recipe, context.draft.place
    found = []
    if recipe.adapter is not None and recipe.model.init == "config":
        found.append(f"{place(('adapter',))}: an adapter on random weights (model.init: config) trains next to nothing")
    if context.draft.is_written(("evaluation", "best")) and not _has_validation(recipe):
        found.append(f"{place(('evaluation', 'best'))}: evaluation.best has no effect without validation data")
    if recipe.evaluation.at_start and not _has_validation(recipe):
        found.append(f"{place(('evaluation', 'at_start'))}: evaluation.at_start has no effect without validation data")
    if recipe.model.trust_remote_code:
        found.append(f"{place(('model', 'trust_remote_code'))}: Python code that comes with the model will be run")
    if keys := rounding_keys(_deepspeed_config(recipe) or {}):
        found.append(
            f"{place(('parallel', 'deepspeed'))}: {recipe.parallel.deepspeed} rounds what travels between ranks "
            f"({', '.join(keys)}): the numbers are not those of other engines"
        )
    return found


def check_model(context: CheckContext) -> Iterator[Fault]:
    """Pretrained weights need a source; random ones need at least a model type."""
    model = context.recipe.model
    if model.source:
        return
    if model.init == "pretrained":
        yield context.fault(
            "model.source", "missing: pretrained weights need a source", allowed="hub id, folder, package:..."
        )
    elif not model.config:
        yield context.fault(
            "model.source", "missing: init: config needs a model type or a config", allowed="such as llama or resnet"
        )


def check_init_device(context: CheckContext) -> Iterator[Fault]:
    """Only random weights are drawn; the stages of a pipeline are cut out of a model on the CPU."""
    recipe = context.recipe
    if recipe.model.init_device == "cpu":
        return
    if recipe.model.init != "config":
        message = "model.init: pretrained draws no weights"
        yield context.fault("model.init_device", message, allowed="cpu; or init: config", on=("model.init",))
    if recipe.parallel.pipeline > 1:
        message = "a pipeline cuts its stages out of a model in main memory"
        yield context.fault("model.init_device", message, allowed="cpu", on=("parallel.pipeline",))


def check_length(context: CheckContext) -> Iterator[Fault]:
    """Epochs or steps, not both; a warmup that ends."""
    training = context.recipe.training
    if training.epochs is not None and training.steps is not None:
        yield context.fault(
            "training.steps",
            f"given beside training.epochs ({training.epochs}): a run has one length",
            allowed="one of the two: set the other to null",
            on=("training.epochs",),
        )
    if training.steps is not None and training.warmup >= max(training.steps, 2):
        yield context.fault(
            "training.warmup",
            f"as long as the run of {training.steps} steps: the learning rate never reaches its peak",
            on=("training.steps",),
        )


def check_learning_rate(context: CheckContext) -> Iterator[Fault]:
    """The end of the schedule is not above its peak."""
    training = context.recipe.training
    if training.min_learning_rate > training.learning_rate:
        yield context.fault(
            "training.min_learning_rate",
            "above training.learning_rate",
            allowed=f"at most {training.learning_rate:g}",
            on=("training.learning_rate",),
        )


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
    elif isinstance(processes, int) and batch % (micro * (replicas := max(1, processes // parallel.split))):
        message = f"training.global_batch ({batch}) is not a multiple of micro_batch x replicas ({micro} x {replicas})"
        if parallel.split == 1:
            message = message.replace("replicas", "processes")
        yield context.fault("parallel.micro_batch", message, allowed=remedy, on=rests)


def check_split(context: CheckContext) -> Iterator[Fault]:
    """A model is split one way, over a number of ranks that divides them all."""
    parallel = context.recipe.parallel
    ways = [way for way in ("tensor", "pipeline") if getattr(parallel, way) > 1]
    for way in ways:
        if way not in context.card.splits:
            known = ", ".join(context.card.splits) or "none: use ZeRO-3 (deepspeed: zero3) for what one GPU cannot hold"
            yield context.fault(f"parallel.{way}", f"the task {context.card.name} cannot be split so", allowed=known)
            return
    if len(ways) > 1:
        message = "parallel.tensor splits the model already"
        yield context.fault("parallel.pipeline", message, allowed="1, or tensor: 1", on=("parallel.tensor",))
    elif isinstance(parallel.processes, int) and parallel.processes % parallel.split:
        message = f"{parallel.processes} processes are not a multiple of parallel.{ways[0]} ({parallel.split})"
        allowed = f"a multiple of {parallel.split}, or auto"
        yield context.fault("parallel.processes", message, allowed=allowed, on=(f"parallel.{ways[0]}",))


def check_quantization(context: CheckContext) -> Iterator[Fault]:
    """Weights of 4 or 8 bits cannot be trained, only an adapter on them; and ZeRO-3 cannot shard them."""
    recipe = context.recipe
    if recipe.model.quantization == "none":
        return
    if recipe.adapter is None:
        message = "quantized weights cannot be trained, and the recipe has no adapter: section"
        allowed = "none, or add for example adapter: {kind: lora}"
        yield context.fault("model.quantization", message, allowed=allowed, on=("adapter",))
    elif recipe.model.init == "config":
        message = "model.init: config has no weights to quantize"
        yield context.fault("model.quantization", message, allowed="none", on=("model.init",))
    elif (_zero_section(recipe) or {}).get("stage") == 3:
        message = "ZeRO-3 cannot shard weights that bitsandbytes has packed"
        allowed = "zero2, zero1 or none with model.quantization"
        yield context.fault("parallel.deepspeed", message, allowed=allowed, on=("model.quantization",))


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
    elif name != "deepspeed" and parallel.deepspeed != DEEPSPEED_OFF and context.draft.is_written(_DEEPSPEED):
        message = f"parallel.deepspeed ({parallel.deepspeed}) is for the engine deepspeed"
        yield context.fault("parallel.engine", message, allowed="auto, deepspeed; or parallel.deepspeed: none")
    elif (name == "pipeline") != (parallel.pipeline > 1):
        message = f"parallel.pipeline is {parallel.pipeline}"
        yield context.fault("parallel.engine", message, allowed="auto; or the engine pipeline with two stages or more")


_DEEPSPEED: KeyPath = ("parallel", "deepspeed")


def check_tensor(context: CheckContext) -> Iterator[Fault]:
    """Layers are sliced under ZeRO-1, and not under adapters."""
    parallel = context.recipe.parallel
    if parallel.tensor == 1 or "tensor" not in context.card.splits:
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
    if parallel.pipeline == 1 or "pipeline" not in context.card.splits:
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


def check_masters(context: CheckContext) -> Iterator[Fault]:
    """float32 masters are of bfloat16 weights, where one rank holds all of a model."""
    recipe, key = context.recipe, "parallel.master_weights"
    if not recipe.parallel.master_weights:
        return
    if recipe.parallel.pipeline > 1:
        yield context.fault(key, "a pipeline keeps float32 weights", allowed="false", on=("parallel.pipeline",))
    elif recipe.training.precision in ("fp32", "tf32", "fp16"):
        message = f"in {recipe.training.precision} there are no bfloat16 weights to keep masters of"
        yield context.fault(key, message, allowed="false", on=("training.precision",))
    elif recipe.model.dtype in ("float32", "float16"):
        message = f"weights in {recipe.model.dtype} need no masters"
        yield context.fault(key, message, allowed="false, or model.dtype: auto", on=("model.dtype",))


def check_smoothing(context: CheckContext) -> Iterator[Fault]:
    """Label smoothing needs labels."""
    if context.recipe.training.label_smoothing and not context.card.label_smoothing:
        yield context.fault(
            "training.label_smoothing", f"the task {context.card.name} has no labels to smooth", allowed="0"
        )


def check_packing(context: CheckContext) -> Iterator[Fault]:
    """A kind of packing that the task supports."""
    packing, default = context.recipe.data.packing, DataSection.model_fields["packing"].default
    known = (default, *context.card.packings)
    if packing not in known:
        yield context.fault("data.packing", f"not supported by the task {context.card.name}", allowed=", ".join(known))


def check_metrics(context: CheckContext) -> Iterator[Fault]:
    """Metrics that the task can feed, and a `best` that is among those computed."""
    evaluation, card = context.recipe.evaluation, context.card
    chosen = list(card.default_metrics if evaluation.metrics is None else evaluation.metrics)
    unknown = [name for name in chosen if name not in card.metrics]
    for name in unknown:
        path = ("evaluation", "metrics", chosen.index(name))
        message = (
            f"not a metric of the task {card.name}" if name != "loss" else "the loss is always computed; leave it out"
        )
        yield context.fault(path, message, allowed=", ".join(card.metrics), near=nearest(name, card.metrics))
    best = evaluation.best
    if best and best != "loss" and best not in chosen:
        near = nearest(best, [*chosen, "loss"])
        known = f": add it to evaluation.metrics, or take one of {', '.join(chosen)}" if best in card.metrics else ""
        yield context.fault(
            "evaluation.best",
            f"not among the metrics that are computed{known}",
            allowed=", ".join(["loss", *chosen]),
            near=near,
            on=("evaluation.metrics",),
        )


def check_validation(context: CheckContext) -> Iterator[Fault]:
    """One source of validation data, and at least one where something needs it."""
    data = context.recipe.data
    if data.validation and data.validation_fraction:
        yield context.fault(
            "data.validation_fraction",
            "given beside data.validation: there is one source of validation data",
            allowed="one of the two",
            on=("data.validation",),
        )
    if context.recipe.training.early_stopping and not _has_validation(context.recipe):
        yield context.fault(
            "training.early_stopping",
            "needs validation data",
            allowed="data.validation, or data.validation_fraction: 0.1",
            on=("data.validation", "data.validation_fraction"),
        )


def check_columns(context: CheckContext) -> Iterator[Fault]:
    """`columns` maps roles of the task. Whether the data has the columns is checked when it is opened."""
    roles = list(context.card.columns)
    homes: list[KeyPath] = [("data", "columns")]
    homes += [
        (*path[:-1], "columns") for path in path_keys(context.draft) if path[0] == "data" and path[-1] == "source"
    ]
    for home in homes:
        columns = context.draft.get(home, {})
        for role in columns if isinstance(columns, dict) else ():
            if role in roles:
                continue
            swapped = columns[role] in roles
            message = f"not a role of the task {context.card.name}"
            near = f"{columns[role]}: {role} (role first, then the data's column)" if swapped else nearest(role, roles)
            yield context.fault((*home, role), message, allowed=", ".join(roles), near=near)


def check_deepspeed(context: CheckContext) -> Iterator[Fault]:
    """A DeepSpeed configuration that exists and does not contradict the recipe."""
    name = context.recipe.parallel.deepspeed
    if name == DEEPSPEED_OFF:
        return
    names = [DEEPSPEED_OFF, *list_deepspeed_configs()]
    if not looks_like_file(name) and name not in names:
        near = "none" if name in ("off", "false", "no", "") else nearest(name, names)
        yield context.fault(
            "parallel.deepspeed", "no such DeepSpeed configuration", allowed=", ".join(names), near=near
        )
        return
    try:
        path = find_deepspeed_config(name)
    except UserError:
        return  # reported by check_files
    try:
        config = read_deepspeed_config(path)
    except UserError as error:
        yield Fault(error.where, "parallel.deepspeed", error.what, allowed="a JSON object")
        return
    asked = context.recipe.training.precision
    precisions = (asked,) if asked in PRECISIONS else DERIVED_PRECISIONS
    yield from config_faults(config, Asked.of(context.recipe, precisions), where=str(path))


def check_files(context: CheckContext) -> Iterator[Fault]:
    """Local files that exist."""
    for path in path_keys(context.draft):
        value = context.draft.get(path)
        if not isinstance(value, str) or is_present(value):
            continue
        if is_pattern(value):
            yield context.fault(path, "matches no file")
            continue
        given = Path(value)
        folder = given.parent
        if not folder.is_dir():
            near = _nearest_in_cwd(given)
            yield context.fault(
                path, f"no such file, and no folder {folder}" if not near else "no such file", near=near
            )
            continue
        near = nearest(given.name, [item.name for item in folder.iterdir()])
        yield context.fault(path, "no such file", near=str(folder / near) if near else _nearest_in_cwd(given))


def check_precision(context: CheckContext) -> Iterator[Fault]:
    """fp16 needs CUDA: its loss scaling and most of its kernels exist only there. tf32 is a mode of its kernels."""
    asked = context.recipe.training.precision
    if asked in CUDA_PRECISIONS and not has_cuda():
        message = f"{asked} needs CUDA, and this machine has none"
        yield context.fault("training.precision", message, allowed="auto, fp32, bf16")
    config = _deepspeed_config(context.recipe)
    if config is not None and context.recipe.training.precision not in PRECISIONS and not has_cuda():
        where = str(find_deepspeed_config(context.recipe.parallel.deepspeed))
        faults = config_faults(config, Asked.of(context.recipe, ("fp32",)), where=where)
        yield from (fault for fault in faults if fault.key == "bf16.enabled")


def check_kernels(context: CheckContext) -> Iterator[Fault]:
    """liger-kernel's layers are written in Triton."""
    if context.recipe.model.kernels == "liger" and not has_cuda():
        yield context.fault("model.kernels", "liger needs CUDA, and this machine has none", allowed="auto, none")


def check_optimizer(context: CheckContext) -> Iterator[Fault]:
    """An optimizer that runs where the weights' masters are."""
    spec = OPTIMIZERS[context.recipe.training.optimizer]
    if spec.device == "cuda" and not has_cuda():
        yield context.fault(
            "training.optimizer",
            f"{spec.name} needs CUDA, and this machine has none",
            allowed=", ".join(other.name for other in OPTIMIZERS.values() if other.device != "cuda"),
        )
    if spec.device == "cpu state" and has_cuda() and _offloads(context.recipe) is False:
        yield context.fault(
            "training.optimizer",
            f"works on state in main memory, but {context.recipe.parallel.deepspeed} keeps it on the GPU",
            allowed="a configuration with offload_optimizer, such as zero2_offload; or adamw",
            on=("parallel.deepspeed",),
        )


def check_trackers(context: CheckContext) -> Iterator[Fault]:
    """Trackers whose packages are missing."""
    for index, name in enumerate(context.recipe.tracking.also):
        if not TRACKERS[name].is_installed:
            remedy = f"pip install 'finetune[{name}]', or remove it here"
            yield context.fault(("tracking", "also", index), f"{name} is not installed", allowed=remedy)


ALWAYS: tuple[Check, ...] = (
    check_model,
    check_length,
    check_learning_rate,
    check_batch,
    check_split,
    check_quantization,
    check_engine,
    check_tensor,
    check_pipeline,
    check_init_device,
    check_masters,
    check_smoothing,
    check_packing,
    check_metrics,
    check_validation,
    check_columns,
    check_deepspeed,
)
HERE: tuple[Check, ...] = (check_files, check_precision, check_kernels, check_optimizer, check_trackers)


def _has_validation(recipe: Recipe) -> bool:
    return bool(recipe.data.validation or recipe.data.validation_fraction)


def _zero_section(recipe: Recipe) -> dict[str, Any] | None:
    """`zero_optimization` of the DeepSpeed configuration; empty without one. None: unknown."""
    if recipe.parallel.deepspeed == DEEPSPEED_OFF:
        return {}
    config = _deepspeed_config(recipe)
    section = None if config is None else config.get("zero_optimization", {})
    return section if isinstance(section, dict) else None


def _deepspeed_config(recipe: Recipe) -> dict[str, Any] | None:
    """The file's content. None: none, or it cannot be read."""
    if recipe.parallel.deepspeed == DEEPSPEED_OFF:
        return None
    try:
        return read_deepspeed_config(find_deepspeed_config(recipe.parallel.deepspeed))
    except UserError:
        return None


def _offloads(recipe: Recipe) -> bool | None:
    """Does the DeepSpeed configuration keep optimizer state in main memory? None: unknown."""
    section = _zero_section(recipe)
    return None if section is None else (section.get("offload_optimizer") or {}).get("device") in ("cpu", "nvme")


def _nearest_in_cwd(given: Path) -> str:
    """A common mistake: a path relative to the current folder instead of the recipe's."""
    cwd = Path.cwd()
    for depth in range(1, len(given.parts)):
        tail = Path(*given.parts[-depth:])
        if (cwd / tail).is_file():
            return f"{cwd / tail} (paths are relative to the recipe file)"
    return ""
