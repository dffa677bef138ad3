"""Loads or creates the image processor, which uses PIL (not torchvision) and returns images of one fixed size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import UserError
from finetune.models.adapter_source import find_adapter
from finetune.models.config import model_errors
from finetune.models.source import resolve_model
from finetune.recipe.model import ModelSection

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

INTERPOLATIONS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}  # codes of PIL
DEFAULT_SIZE = 224
MAX_EDGE = 16_384  # pixels of an image as the model sees it: more would take the memory of the machine


def load_processor(
    model: ModelSection,
    config: PreTrainedConfig,
    *,
    image_size: int | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    interpolation: str | None = None,
    kind: str = "ViTImageProcessorPil",
    notes: list[str] | None = None,
) -> Any:
    """The processor of model.processor or model.source with the recipe's changes; a new one for `init: config`.

    Its output has one fixed size for images of any shape. If the loaded processor keeps the aspect ratio, a plain
    resize to a square, or to the size that the model states, replaces it. The returned processor is saved with the model,
    so inference uses the same one.

    image_size: height and width of the output. mean, std: one value per channel. None or empty: as loaded.
    kind: name of the class in transformers for new processors. notes: where a line is added if a plain resize replaces it.
    Raises: UserError if there is no processor, or its output size is not that of the model.
    """
    where = model.processor or ("" if model.init == "config" else model.source)
    _check_edges(model_size(config) or (), model.source)
    processor = _load(where, model) if where else _make(kind, config, image_size, mean, std, interpolation)
    if where:
        _check_edges(_stated_edges(processor), where)
        if mean:
            processor.image_mean = list(mean)
        if std:
            processor.image_std = list(std)
        if interpolation is not None:
            processor.resample = INTERPOLATIONS[interpolation]
        if image_size is not None and output_size(processor, config) != (image_size, image_size):
            processor = _remake(kind, config, image_size, processor)
        elif output_size(processor, config) is None:
            edge = next((int(edge) for edge in dict(processor.size).values() if edge), DEFAULT_SIZE)
            processor = _remake(kind, config, None if model_size(config) else edge, processor)
            if notes is not None:
                height, width = output_size(processor, config) or (edge, edge)
                notes.append(
                    f"images are resized to {width} x {height} pixels; the model's own processor keeps their aspect ratio"
                )
    _check_size(processor, model, config)
    return processor


def _stated_edges(processor: Any) -> list[Any]:
    """The edges that a processor resizes, crops or pads to. Areas, which some state in place of edges, are not among them."""
    sizes = [dict(getattr(processor, name, None) or {}) for name in ("size", "crop_size", "pad_size")]
    names = ("height", "width", "shortest_edge", "max_height", "max_width")
    return [
        size[name]
        for size in sizes
        for name in (("longest_edge",) if set(size) == {"longest_edge"} else names)
        if name in size
    ]


def _check_edges(edges: Sequence[Any], where: str) -> None:
    """Raises: UserError for an image that no model takes, before one is made."""
    for edge in edges:
        if isinstance(edge, (int, float)) and edge > MAX_EDGE:
            raise UserError(
                f"images of {edge:,} pixels at an edge, more than {MAX_EDGE:,}",
                where=where,
                remedy="Correct the size in its preprocessor_config.json, or image_size in its config.json.",
            )


def output_size(processor: Any, config: Any) -> tuple[int, int] | None:
    """(height, width) of the output, or None if it depends on the image. Found by processing two images."""
    from PIL import Image

    mode = "L" if num_channels(config) == 1 else "RGB"
    sizes = set()
    for shape in ((40, 60), (60, 40)):
        pixels = processor(Image.new(mode, shape), return_tensors="np")["pixel_values"]
        sizes.add(tuple(int(edge) for edge in pixels.shape[-2:]))
    return sizes.pop() if len(sizes) == 1 else None  # type: ignore[return-value]


def num_channels(config: Any) -> int:
    """Number of color channels that the model expects: 3 unless its configuration says otherwise."""
    return int(getattr(config, "num_channels", 3) or 3)


def model_size(config: Any) -> tuple[int, int] | None:
    """(height, width) that a model with position embeddings expects (ViT); None if it accepts any size (ResNet)."""
    size = getattr(config, "image_size", None)
    if isinstance(size, int):
        return size, size
    return (int(size[0]), int(size[1])) if isinstance(size, (list, tuple)) and len(size) == 2 else None


def _remake(kind: str, config: Any, edge: int | None, old: Any) -> Any:
    """A new processor of another size (None: the model's), with the normalization and the interpolation of `old`."""
    processor = _make(kind, config, edge, old.image_mean, old.image_std, _interpolation_of(old))
    processor.do_normalize = old.do_normalize
    return processor


def _make(
    kind: str,
    config: Any,
    image_size: int | None,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str | None,
) -> Any:
    import transformers

    channels = num_channels(config)
    height, width = (image_size, image_size) if image_size else model_size(config) or (DEFAULT_SIZE, DEFAULT_SIZE)
    return getattr(transformers, kind)(
        size={"height": height, "width": width},
        image_mean=list(mean) or [0.5] * channels,
        image_std=list(std) or [0.5] * channels,
        resample=INTERPOLATIONS[interpolation or "bilinear"],
    )


def _interpolation_of(processor: Any) -> str:
    number = int(processor.resample) if processor.resample is not None else INTERPOLATIONS["bilinear"]
    return next((name for name, code in INTERPOLATIONS.items() if code == number), "bilinear")


def _load(source: str, model: ModelSection) -> Any:
    # Older releases export a placeholder from the top that asks for torchvision; the class itself does without it.
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    with model_errors(source):
        adapter = find_adapter(source)
        where = adapter.holder(["preprocessor_config.json"]) if adapter else resolve_model(source)
        folder = Path(where)
        if folder.is_dir() and not (folder / "preprocessor_config.json").is_file():
            raise UserError(
                "the folder contains no image processor (preprocessor_config.json)",
                where=where,
                remedy="Set model.processor to a hub id or folder that has one.",
            )
        revision = "main" if model.processor or adapter else model.revision
        return AutoImageProcessor.from_pretrained(
            where, revision=revision, trust_remote_code=model.trust_remote_code, backend="pil"
        )


def _check_size(processor: Any, model: ModelSection, config: Any) -> None:
    expected, actual = model_size(config), output_size(processor, config)
    if expected is not None and actual != expected:
        size = f"{actual[0]} x {actual[1]}" if actual else "images of varying size"
        raise UserError(
            f"the model expects {expected[0]} x {expected[1]} pixels, but the image processor returns {size}",
            where=model.source,
            remedy=f"Remove options.image_size, or set it to {expected[0]}.",
        )
