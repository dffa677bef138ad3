"""Losses of transformers' object detectors as exact sums over boxes, and decoding of their detections.

A detector computes its loss inside its forward pass, as a mean over the boxes of the local batch. Here the loss is
deferred: after `defer_loss`, the forward pass returns the arguments of the loss, and `detection_loss_sum` calls the
model's own loss function later, normalized so that sums over any split of a batch agree.

Shapes: B images, Q queries, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune.errors import UserError
from finetune.models.meta import build_on_meta

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Family:
    """How a loss function of detectors is normalized, and the layout of its arguments.

    sums: every term of the loss is a sum divided by the number of boxes; if not, the loss is computed image by image.
    layers_first: intermediate outputs are [layers, B, ...] instead of [B, layers, ...].
    softmax: logits have an additional class, "no object".
    """

    sums: bool
    layers_first: bool
    softmax: bool = False


LOSSES = {
    "RTDetrForObjectDetectionLoss": Family(sums=True, layers_first=False),
    "DeformableDetrForObjectDetectionLoss": Family(sums=True, layers_first=True),
    "DFineForObjectDetectionLoss": Family(sums=True, layers_first=False),  # see dfine_loss.py
    # DETR, YOLOS: the class term is a mean over queries.
    "ForObjectDetectionLoss": Family(sums=False, layers_first=True, softmax=True),
}
SUPPORTED = "D-FINE, RT-DETR, RT-DETRv2, Deformable DETR, Conditional DETR, DAB-DETR, DETR, YOLOS"
MAX_DETECTIONS = 100  # per image, as in COCO


@dataclass
class Deferred:
    """The loss function of a forward pass and its arguments. anchor: a 0 connected to all weights of this rank."""

    function: Any
    config: Any
    arguments: dict[str, Any]
    anchor: torch.Tensor

    @property
    def family(self) -> Family:
        """How the loss is normalized."""
        return LOSSES[self.function.__name__]

    def to(self, device: Any) -> Deferred:
        """The same with its tensors on a device."""
        from accelerate.utils import send_to_device

        arguments: dict[str, Any] = send_to_device(self.arguments, device)
        return Deferred(self.function, self.config, arguments, self.anchor.to(device))


def family_of(model: Any) -> Family:
    """How the loss of a model is normalized. Raises: UserError for a model whose loss is not in LOSSES."""
    name = model.loss_function.__name__
    if name not in LOSSES:
        raise UserError(
            f"{model.config.model_type} models cannot be trained: their loss ({name}) is not supported",
            where="model.source",
            remedy=f"Use one of the supported detectors: {SUPPORTED}.",
        )
    return LOSSES[name]


def defer_loss(model: Any) -> None:
    """Make `model(pixels, labels=...)` return outputs.loss_dict["deferred"], a `Deferred`, instead of a loss.

    Its anchor gives every weight a gradient of 0 if a batch has no boxes, because DistributedDataParallel waits for the
    gradients of all weights.
    Raises: UserError for a model whose loss is not in LOSSES.
    """
    import torch

    family_of(model)
    loss_function = model.loss_function

    def defer(logits: Any, labels: Any, device: Any, pred_boxes: Any, config: Any, *rest: Any, **more: Any) -> Any:
        names = ("outputs_class", "outputs_coord")
        arguments = {"logits": logits, "pred_boxes": pred_boxes, **dict(zip(names, rest, strict=False)), **more}
        anchor = logits.new_zeros(())
        if torch.is_grad_enabled():
            local = (weight for weight in model.parameters() if weight.requires_grad and weight.numel())
            anchor = anchor + sum(weight.reshape(-1)[0].to(logits) * 0.0 for weight in local)
        return logits.new_zeros(()), {"deferred": Deferred(loss_function, config, arguments, anchor)}, None

    defer.family = LOSSES[loss_function.__name__]  # type: ignore[attr-defined]
    model.loss_function = defer


@dataclass
class DetectionOutputs:
    """The outputs of a detector for B images. logits: [B, Q, C] (one class more with softmax). boxes: [B, Q, 4], centered
    shares of the image. loss: the deferred loss; None where the inputs had no targets.
    """

    logits: torch.Tensor
    boxes: torch.Tensor
    family: Family
    deferred: Deferred | None = None

    @property
    def loss(self) -> Deferred:
        """The deferred loss of a batch with targets."""
        assert self.deferred is not None, "the batch has no targets"
        return self.deferred


def detect(model: Any, inputs: dict[str, Any]) -> DetectionOutputs:
    """The forward pass of a model whose loss is deferred. inputs: {"pixel_values", and "labels" for a loss}."""
    outputs = model(**inputs)
    family = getattr(model, "module", model).loss_function.family
    deferred = outputs.loss_dict["deferred"] if "labels" in inputs else None
    return DetectionOutputs(outputs.logits, outputs.pred_boxes, family, deferred)


def cast_inputs(model: Any) -> None:
    """From now on, wherever weights are half precision, so are the tensors passed to the modules that hold them.

    Detectors make some tensors in float32 whatever their weights are: denoising boxes and their attention mask (RT-DETR,
    D-FINE), sine embeddings of boxes (DAB-DETR). With float32 weights, nothing is cast.
    """
    for module in model.modules():
        weight = next((one for one in module.parameters() if one.is_floating_point()), None)
        if weight is not None:
            module.register_forward_pre_hook(_caster(weight), with_kwargs=True)


def _caster(weight: torch.Tensor) -> Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]:
    """A hook that asks for the weight's dtype at each call: DeepSpeed casts weights in place once the model is built."""
    import torch

    def cast(module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        dtype = weight.dtype
        if dtype not in (torch.bfloat16, torch.float16):
            return None
        values = [*arguments, *named.values()]
        if not any(isinstance(value, torch.Tensor) and value.dtype == torch.float32 for value in values):
            return None
        made = [v.to(dtype) if isinstance(v, torch.Tensor) and v.dtype == torch.float32 else v for v in values]
        count = len(arguments)
        return tuple(made[:count]), dict(zip(named, made[count:], strict=True))

    return cast


def box_units(targets: Sequence[dict[str, Any]]) -> list[int]:
    """Loss units of each image: its number of boxes, but at least 1, as the loss functions count."""
    return [max(1, len(target["class_labels"])) for target in targets]


def detection_loss_sum(deferred: Deferred, targets: Sequence[dict[str, Any]]) -> torch.Tensor:
    """The loss summed over `box_units`, float32 scalar, including the anchor."""
    if deferred.family.sums:
        boxes = max(1, sum(len(target["class_labels"]) for target in targets))
        total = _call_loss(deferred, deferred.arguments, targets) * boxes
    else:
        import torch

        total = torch.stack(detection_losses(deferred, targets)).sum()
    return total + deferred.anchor.float()


def detection_losses(deferred: Deferred, targets: Sequence[dict[str, Any]]) -> list[torch.Tensor]:
    """The loss of each image multiplied by its units: B float32 scalars."""
    return [
        _call_loss(deferred, _one_image(deferred, index), [target]) * units
        for index, (target, units) in enumerate(zip(targets, box_units(targets), strict=True))
    ]


def _call_loss(deferred: Deferred, arguments: dict[str, Any], targets: Sequence[dict[str, Any]]) -> torch.Tensor:
    """Call the model's loss function in float32. It divides by the number of boxes of these images, at least 1."""
    in_float32 = {name: _to_float32(value) for name, value in arguments.items()}
    with _summable():
        loss, _, _ = deferred.function(
            labels=list(targets), device=in_float32["logits"].device, config=deferred.config, **in_float32
        )
    return loss.float()


def _to_float32(value: Any) -> Any:
    return value.float() if hasattr(value, "is_floating_point") and value.is_floating_point() else value


@contextmanager
def _summable() -> Iterator[None]:
    """Patch two loss functions of transformers within the context.

    DETR's loss all-reduces the number of boxes through Accelerate, but ranks call it different numbers of times, and no
    mean is needed. D-FINE's loss has a term that is not a sum over boxes.
    """
    from transformers.loss import loss_d_fine, loss_for_object_detection

    from finetune.models.dfine_loss import SummableDFineLoss

    original = loss_for_object_detection.is_accelerate_available, loss_d_fine.DFineLoss
    loss_for_object_detection.is_accelerate_available = lambda: False
    loss_d_fine.DFineLoss = SummableDFineLoss  # type: ignore[misc]
    try:
        yield
    finally:
        loss_for_object_detection.is_accelerate_available, loss_d_fine.DFineLoss = original  # type: ignore[misc]


def _one_image(deferred: Deferred, index: int) -> dict[str, Any]:
    """The arguments of the loss for one image of the batch, with a batch dimension of 1."""
    selected: dict[str, Any] = {}
    for name, value in deferred.arguments.items():
        if name == "denoising_meta_values" and value is not None:
            selected[name] = {**value, "dn_positive_idx": [value["dn_positive_idx"][index]]}
        elif not hasattr(value, "dim"):
            selected[name] = value
        elif deferred.family.layers_first and name in ("outputs_class", "outputs_coord"):
            selected[name] = value[:, index : index + 1]
        else:
            selected[name] = value[index : index + 1]
    return selected


def decode_boxes(logits: torch.Tensor, boxes: torch.Tensor, *, softmax: bool) -> list[dict[str, torch.Tensor]]:
    """The 100 best detections of each image, by descending score: {"scores": [n], "labels": [n], "corners": [n, 4]}. Equal
    scores, which half precision often gives, follow queries and classes, on every device and in batches of every size.

    They are on the CPU: copied there once, not for each image.

    logits: [B, Q, C] (C + 1 with softmax). boxes: [B, Q, 4] as (center x, center y, width, height).
    Boxes and corners (left, top, right, bottom) are fractions of the image size.
    """
    import torch

    scores = logits.float().softmax(-1)[..., :-1] if softmax else logits.float().sigmoid()
    classes = scores.shape[-1]
    ordered = scores.flatten(1).sort(dim=1, descending=True, stable=True)
    best, indices = (part[:, :MAX_DETECTIONS] for part in ordered)
    chosen = torch.gather(boxes.float(), 1, (indices // classes).unsqueeze(-1).expand(-1, -1, 4))
    centers, sizes = chosen[..., :2], chosen[..., 2:]
    corners = torch.cat([centers - sizes / 2, centers + sizes / 2], dim=-1).clamp(0, 1)
    best, labels, corners = best.cpu(), (indices % classes).cpu(), corners.cpu()
    return [
        {"scores": image_scores, "labels": image_labels, "corners": image_corners}
        for image_scores, image_labels, image_corners in zip(best, labels, corners, strict=True)
    ]


def class_modules(model: Any) -> list[str]:
    """Dotted names of the modules whose weights have one row per class; shared modules occur once.

    Found by creating the model on the meta device with one more class and comparing shapes.
    """

    def with_another_class(config: Any) -> Any:
        config.num_labels += 1
        return type(model)(config)

    larger = build_on_meta(with_another_class, model.config)
    shapes = {name: weight.shape for name, weight in larger.named_parameters()}
    return sorted(
        {
            name.rpartition(".")[0]
            for name, weight in model.named_parameters()
            if tuple(getattr(weight, "ds_shape", weight.shape)) != tuple(shapes[name])
        }
    )


def lower_prior(model: Any, names: Sequence[str]) -> None:
    """Initialize the biases of new class heads so that every class has a low probability in every query, not 1/2.

    Source: Lin et al., "Focal Loss for Dense Object Detection" (2017), section 4.1.
    """
    import math

    import torch

    prior = getattr(model.config, "initializer_bias_prior_prob", None) or 1 / (model.config.num_labels + 1)
    for name in names:
        bias = getattr(model.get_submodule(name), "bias", None)
        if bias is not None:
            torch.nn.init.constant_(bias, -math.log((1 - prior) / prior))
