"""Object detectors of transformers: their own losses as exact sums over boxes, their boxes decoded, their processors.

Shapes: B images, Q queries, C classes. A detector computes its loss inside its forward pass, as a mean over the boxes of
the local batch. Here the loss is put off: `defer_loss` makes the forward pass keep what the loss needs, and
`detection_losses` asks the model's own loss function later, normalised so that sums over any split of a batch agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune.errors import UserError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Family:
    """sums: every term of the loss is a sum divided by the number of boxes; where not, each image is asked by itself.

    layers_first: intermediate outputs are [layers, B, ...], else [B, layers, ...]. softmax: logits have one class more,
    "nothing".
    """

    sums: bool
    layers_first: bool
    softmax: bool = False


LOSSES = {
    "RTDetrForObjectDetectionLoss": Family(sums=True, layers_first=False),
    "DeformableDetrForObjectDetectionLoss": Family(sums=True, layers_first=True),
    "DFineForObjectDetectionLoss": Family(sums=True, layers_first=False),  # by dfine_loss.py
    # DETR, YOLOS: the class term is a mean over queries.
    "ForObjectDetectionLoss": Family(sums=False, layers_first=True, softmax=True),
}
KNOWN = "D-FINE, RT-DETR, RT-DETRv2, Deformable DETR, Conditional DETR, DAB-DETR, DETR, YOLOS"
TOP = 100  # detections kept an image: what COCO counts


@dataclass
class Deferred:
    """What a forward pass kept for the loss. anchor: 0, but connected to every weight of this rank."""

    function: Any
    config: Any
    arguments: dict[str, Any]
    anchor: torch.Tensor

    @property
    def family(self) -> Family:
        """How the model's loss is made up."""
        return LOSSES[self.function.__name__]


def family_of(model: Any) -> Family:
    """How the model's loss is made up. Raises: UserError for a model whose loss is not among LOSSES."""
    name = model.loss_function.__name__
    if name not in LOSSES:
        raise UserError(
            f"a {model.config.model_type} model cannot be trained here: its loss ({name}) is not known to be a sum",
            where="model.source",
            remedy=f"Known detectors: {KNOWN}.",
        )
    return LOSSES[name]


def defer_loss(model: Any) -> None:
    """From now on `model(pixels, labels=...)` has outputs.loss_dict["deferred"] in place of a loss.

    The anchor gives every weight a gradient of 0 where a batch holds no box: DistributedDataParallel waits for all.
    Raises: UserError for a model whose loss is not among LOSSES.
    """
    import torch

    family_of(model)
    own = model.loss_function

    def keep(logits: Any, labels: Any, device: Any, pred_boxes: Any, config: Any, *rest: Any, **more: Any) -> Any:
        names = ("outputs_class", "outputs_coord")
        arguments = {"logits": logits, "pred_boxes": pred_boxes, **dict(zip(names, rest, strict=False)), **more}
        anchor = logits.new_zeros(())
        if torch.is_grad_enabled():
            held = (weight for weight in model.parameters() if weight.requires_grad and weight.numel())
            anchor = anchor + sum(weight.reshape(-1)[0].to(logits) * 0.0 for weight in held)
        return logits.new_zeros(()), {"deferred": Deferred(own, config, arguments, anchor)}, None

    keep.family = LOSSES[own.__name__]  # type: ignore[attr-defined]
    model.loss_function = keep


@dataclass
class DetectionOutputs:
    """What a detector said of B images. logits: [B, Q, C] (one class more with softmax). boxes: [B, Q, 4], centered
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
    """Units of loss of each image: its boxes; 1 for an image without any, as the losses themselves count."""
    return [max(1, len(target["class_labels"])) for target in targets]


def detection_loss_sum(deferred: Deferred, targets: Sequence[dict[str, Any]]) -> torch.Tensor:
    """The loss summed over `box_units`: float32 scalar. Its anchor included."""
    if deferred.family.sums:
        boxes = max(1, sum(len(target["class_labels"]) for target in targets))
        total = _ask(deferred, deferred.arguments, targets) * boxes
    else:
        import torch

        total = torch.stack(detection_losses(deferred, targets)).sum()
    return total + deferred.anchor.float()


def detection_losses(deferred: Deferred, targets: Sequence[dict[str, Any]]) -> list[torch.Tensor]:
    """The loss of each image, times its units: float32 scalars."""
    return [
        _ask(deferred, _one_image(deferred, index), [target]) * units
        for index, (target, units) in enumerate(zip(targets, box_units(targets), strict=True))
    ]


def _ask(deferred: Deferred, arguments: dict[str, Any], targets: Sequence[dict[str, Any]]) -> torch.Tensor:
    """The model's own loss, in float32: over the boxes of these images, or over 1 if there are none."""
    widened = {name: _widened(value) for name, value in arguments.items()}
    with _summable():
        loss, _, _ = deferred.function(
            labels=list(targets), device=widened["logits"].device, config=deferred.config, **widened
        )
    return loss.float()


def _widened(value: Any) -> Any:
    return value.float() if hasattr(value, "is_floating_point") and value.is_floating_point() else value


@contextmanager
def _summable() -> Iterator[None]:
    """DETR's loss all-reduces its number of boxes through Accelerate: the ranks ask unequally often, and need no mean.
    D-FINE's has a term that is no sum.
    """
    from transformers.loss import loss_d_fine, loss_for_object_detection

    from finetune.models.dfine_loss import SummableDFineLoss

    former = loss_for_object_detection.is_accelerate_available, loss_d_fine.DFineLoss
    loss_for_object_detection.is_accelerate_available = lambda: False
    loss_d_fine.DFineLoss = SummableDFineLoss  # type: ignore[misc]
    try:
        yield
    finally:
        loss_for_object_detection.is_accelerate_available, loss_d_fine.DFineLoss = former  # type: ignore[misc]


def _one_image(deferred: Deferred, index: int) -> dict[str, Any]:
    """The arguments of one image of the batch, still [1, ...]."""
    own: dict[str, Any] = {}
    for name, value in deferred.arguments.items():
        if name == "denoising_meta_values" and value is not None:
            own[name] = {**value, "dn_positive_idx": [value["dn_positive_idx"][index]]}
        elif not hasattr(value, "dim"):
            own[name] = value
        elif deferred.family.layers_first and name in ("outputs_class", "outputs_coord"):
            own[name] = value[:, index : index + 1]
        else:
            own[name] = value[index : index + 1]
    return own


def decode_boxes(logits: torch.Tensor, boxes: torch.Tensor, *, softmax: bool) -> list[dict[str, torch.Tensor]]:
    """The 100 best detections of each image, best first: {"scores" [n], "labels" [n], "corners" [n, 4]} as shares.

    logits: [B, Q, C] (C + 1 with softmax), boxes: [B, Q, 4] centred.
    """
    import torch

    scores = logits.float().softmax(-1)[..., :-1] if softmax else logits.float().sigmoid()
    classes = scores.shape[-1]
    best, places = scores.flatten(1).topk(min(TOP, scores.shape[1] * classes), dim=1)
    chosen = torch.gather(boxes.float(), 1, (places // classes).unsqueeze(-1).expand(-1, -1, 4))
    middles, sides = chosen[..., :2], chosen[..., 2:]
    corners = torch.cat([middles - sides / 2, middles + sides / 2], dim=-1).clamp(0, 1)
    labels = places % classes
    return [
        {"scores": one, "labels": label, "corners": corner}
        for one, label, corner in zip(best, labels, corners, strict=True)
    ]


def class_modules(model: Any) -> list[str]:
    """Dotted names of the modules whose weights have a row a class; each shared one once.

    Told by making the model, without memory, for one class more, and comparing shapes.
    """
    import copy

    import torch

    config = copy.deepcopy(model.config)
    config.num_labels = config.num_labels + 1
    with torch.device("meta"):
        other = type(model)(config)
    shapes = {name: weight.shape for name, weight in other.named_parameters()}
    return sorted(
        {
            name.rpartition(".")[0]
            for name, weight in model.named_parameters()
            if tuple(getattr(weight, "ds_shape", weight.shape)) != tuple(shapes[name])
        }
    )


def lower_prior(model: Any, names: Sequence[str]) -> None:
    """New class weights begin by seeing nothing, not by seeing every class with probability 1/2 in every query.

    Source: Lin et al., "Focal Loss for Dense Object Detection" (2017), section 4.1.
    """
    import math

    import torch

    prior = getattr(model.config, "initializer_bias_prior_prob", None) or 1 / (model.config.num_labels + 1)
    for name in names:
        bias = getattr(model.get_submodule(name), "bias", None)
        if bias is not None:
            torch.nn.init.constant_(bias, -math.log((1 - prior) / prior))
