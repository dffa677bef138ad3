"""D-FINE's loss for many images at once, its distillation term taken image by image, so that it can be summed.

transformers takes that term (DDF; Peng et al., "D-FINE", 2024, section 4.2) as a mean over all queries of a batch, which
depends on how images are put together. Here it is that of each image alone, times the image's boxes.
Letters: B images, Q queries, K bins of a side's distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.image_transforms import center_to_corners_format as as_corners
from transformers.loss.loss_d_fine import DFineLoss
from transformers.loss.loss_for_object_detection import box_iou

TEMPERATURE = 5.0


class SummableDFineLoss(DFineLoss):
    """Times the number of boxes (at least 1), the total is the sum of the losses of each image times its boxes."""

    def forward(self, outputs: dict[str, Any], targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """As DFineLoss; remembers how many boxes each image has."""
        counts = [len(target["class_labels"]) for target in targets]
        self.units = outputs["logits"].new_tensor([max(1, count) for count in counts]) / max(1, sum(counts))
        return super().forward(outputs, targets)

    def loss_local(
        self,
        outputs: dict[str, Any],
        targets: Sequence[dict[str, Tensor]],
        indices: Any,
        num_boxes: float,
        T: float = TEMPERATURE,  # noqa: N803 (transformers calls it so)
    ) -> dict[str, Tensor]:
        """As DFineLoss, with "loss_ddf" of each image alone."""
        teacher = outputs.get("teacher_corners")
        if teacher is None:
            return super().loss_local(outputs, targets, indices, num_boxes, T)
        # Told that the student is the teacher, transformers leaves the distillation out: it comes below.
        losses = super().loss_local(
            {**outputs, "teacher_corners": outputs["pred_corners"]}, targets, indices, num_boxes, T
        )
        if not torch.equal(outputs["pred_corners"], teacher):
            matched = self._get_source_permutation_idx(indices)
            boxes = torch.cat([target["boxes"][i] for target, (_, i) in zip(targets, indices, strict=True)])
            predicted = _corners(outputs["pred_boxes"][matched])
            overlaps = torch.diag(box_iou(predicted, _corners(boxes))[0]).detach()
            losses["loss_ddf"] = (self._distilled(outputs, matched, overlaps) * self.units).sum()
        return losses

    def _distilled(self, outputs: dict[str, Any], matched: tuple[Tensor, Tensor], overlaps: Tensor) -> Tensor:
        """[B]: divergence of each side's distribution from the last layer's, weighted by how sure that one is; matched and
        other queries averaged apart, and joined by the square roots of their numbers.
        """
        student, teacher = outputs["pred_corners"], outputs["teacher_corners"].detach()
        shape = (*student.shape[:2], 4, self.max_num_bins + 1)
        kl = functional.kl_div(
            functional.log_softmax(student.view(shape) / TEMPERATURE, dim=-1),
            functional.softmax(teacher.view(shape) / TEMPERATURE, dim=-1),
            reduction="none",
        ).sum(dim=(-1, -2))  # [B, Q]
        weight = outputs["teacher_logits"].detach().sigmoid().amax(dim=-1).to(kl.dtype)
        weight[matched] = overlaps.to(kl.dtype)
        is_matched = torch.zeros_like(weight)
        is_matched[matched] = 1.0
        loss = kl * weight * TEMPERATURE**2
        total, joined = loss.new_zeros(len(loss)), loss.new_zeros(len(loss))
        for mask in (is_matched, 1.0 - is_matched):
            sides = 4 * mask.sum(dim=1)
            mean = (loss * mask).sum(dim=1) / sides.clamp(min=1)
            total, joined = total + mean * sides.sqrt(), joined + sides.sqrt()
        return total / joined


def _corners(boxes: Tensor) -> Tensor:
    corners: Any = as_corners(boxes)  # type: ignore[arg-type]
    return corners
