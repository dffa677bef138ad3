"""Contradictions about the model: its source, random weights, quantization."""

from __future__ import annotations

from collections.abc import Iterator

from finetune.errors import Fault
from finetune.recipe.checks.context import CheckContext
from finetune.recipe.checks.deepspeed import zero_section


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
    elif (zero_section(recipe) or {}).get("stage") == 3:
        message = "ZeRO-3 cannot shard weights that bitsandbytes has packed"
        allowed = "zero2, zero1 or none with model.quantization"
        yield context.fault("parallel.deepspeed", message, allowed=allowed, on=("model.quantization",))


def check_float8(context: CheckContext) -> Iterator[Fault]:
    """float8 takes the place of products in bf16, of weights that are trained and that one rank holds whole."""
    recipe, key = context.recipe, "model.float8"
    if recipe.model.float8 == "none":
        return
    if recipe.training.precision in ("fp32", "tf32", "fp16"):
        message = f"float8 takes the place of products in bf16, not in {recipe.training.precision}"
        yield context.fault(key, message, allowed="none, or precision: bf16", on=("training.precision",))
    if recipe.model.dtype == "float16":
        message = "float8 takes the place of products in bf16, and the weights are in float16"
        yield context.fault(key, message, allowed="none, or dtype: auto", on=("model.dtype",))
    if recipe.adapter is not None:
        message = (
            "under an adapter linear layers are frozen, and torchao computes gradients of the weights of all its layers"
        )
        yield context.fault(key, message, allowed="none, or no adapter", on=("adapter",))
    if recipe.model.quantization != "none":
        message = "quantized weights have products of their own"
        yield context.fault(key, message, allowed="none", on=("model.quantization",))
    if (zero_section(recipe) or {}).get("stage") == 3:
        message = "ZeRO-3 frees the weights that float8 layers keep for their backward pass"
        yield context.fault(key, message, allowed="none, or zero2, zero1 or none", on=("parallel.deepspeed",))
    if recipe.parallel.tensor > 1:
        message = "layers that are sliced over ranks have products of their own"
        yield context.fault(key, message, allowed="none, or tensor: 1", on=("parallel.tensor",))
    if recipe.parallel.pipeline > 1:
        message = "float8 layers were not tried in the stages of a pipeline"
        yield context.fault(key, message, allowed="none, or pipeline: 1", on=("parallel.pipeline",))


def check_light_checkpointing(context: CheckContext) -> Iterator[Fault]:
    """It watches the modules inside layers, on passes that autograd records as a whole."""
    recipe, key = context.recipe, "model.gradient_checkpointing"
    if recipe.model.gradient_checkpointing != "light":
        return
    if recipe.model.compile != "none":
        message = "a compiled layer decides itself what it keeps, and does not run the modules inside"
        yield context.fault(key, message, allowed="true, false; or compile: none", on=("model.compile",))
    if recipe.parallel.pipeline > 1:
        message = "light was not tried in the stages of a pipeline"
        yield context.fault(key, message, allowed="true, false; or pipeline: 1", on=("parallel.pipeline",))


def check_compile(context: CheckContext) -> Iterator[Fault]:
    """Layers are compiled where what happens inside them is PyTorch's own, on one rank."""
    recipe, key = context.recipe, "model.compile"
    if recipe.model.compile == "none":
        return
    if (zero_section(recipe) or {}).get("stage") == 3:
        message = "ZeRO-3 gathers weights in hooks on the modules inside a layer, which a compiled layer does not run"
        yield context.fault(key, message, allowed="none, or zero2, zero1 or none", on=("parallel.deepspeed",))
    if recipe.parallel.tensor > 1:
        message = "layers that are sliced over ranks communicate in their forward pass, which was not tried compiled"
        yield context.fault(key, message, allowed="none, or tensor: 1", on=("parallel.tensor",))
    if recipe.parallel.pipeline > 1:
        message = "a pipeline replaces the forward passes of layers to cut between them"
        yield context.fault(key, message, allowed="none, or pipeline: 1", on=("parallel.pipeline",))
    if recipe.model.quantization != "none":
        message = "quantized layers were not tried compiled"
        yield context.fault(key, message, allowed="none", on=("model.quantization",))
    if recipe.model.kernels == "liger":
        message = "the compiler fuses the layers itself"
        yield context.fault("model.kernels", message, allowed="auto, none; or compile: none", on=(key,))
