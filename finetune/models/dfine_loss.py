"""D-FINE's loss with a distillation term that is computed per image, so that losses of images can be summed.

transformers computes this term (DDF; Peng et al., "D-FINE", 2024, section 4.2) as a mean over all queries of a batch,
which depends on the composition of the batch. Here it is computed for each image and multiplied by its number of boxes.

Shapes: B images, Q queries, K bins of the distribution of a box side.
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
    """DFineLoss for which loss times number of boxes (at least 1) of a batch is the sum of this over its images."""

    def forward(self, outputs: dict[str, Any], targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """As DFineLoss; stores the fraction of the boxes that belong to each image."""
        counts = [len(target["class_labels"]) for target in targets]
        self.units = outputs["logits"].new_tensor([max(1, count) for count in counts]) / max(1, sum(counts))
        return super().forward(outputs, targets)

    def loss_local(
        self,
        outputs: dict[str, Any],
        targets: Sequence[dict[str, Tensor]],
        indices: Any,
        num_boxes: float,
        T: float = TEMPERATURE,  # noqa: N803 (name in transformers)
    ) -> dict[str, Tensor]:
        """As DFineLoss, with "loss_ddf" computed per image."""
        teacher = outputs.get("teacher_corners")
        if teacher is None:
            return super().loss_local(outputs, targets, indices, num_boxes, T)
        # With the student as the teacher, transformers skips the distillation term, which is added below.
        losses = super().loss_local(
            {**outputs, "teacher_corners": outputs["pred_corners"]}, targets, indices, num_boxes, T
        )
        if not torch.equal(outputs["pred_corners"], teacher):
            matched = self._get_source_permutation_idx(indices)
            boxes = torch.cat([target["boxes"][i] for target, (_, i) in zip(targets, indices, strict=True)])
            predicted = _corners(outputs["pred_boxes"][matched])
            overlaps = torch.diag(box_iou(predicted, _corners(boxes))[0]).detach()
            losses["loss_ddf"] = (self._distillation(outputs, matched, overlaps) * self.units).sum()
        return losses

    def _distillation(self, outputs: dict[str, Any], matched: tuple[Tensor, Tensor], overlaps: Tensor) -> Tensor:
        """The distillation loss of each image, [B].

        The KL divergence of the distribution of each side from that of the last layer, weighted by the confidence of
        the last layer. Matched and unmatched queries are averaged separately, then weighted by the square root of their
        numbers. matched: indices (image, query). overlaps: IoU of the matched boxes.
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
        total, weights = loss.new_zeros(len(loss)), loss.new_zeros(len(loss))
        for mask in (is_matched, 1.0 - is_matched):
            sides = 4 * mask.sum(dim=1)
            mean = (loss * mask).sum(dim=1) / sides.clamp(min=1)
            total, weights = total + mean * sides.sqrt(), weights + sides.sqrt()
        return total / weights


def _corners(boxes: Tensor) -> Tensor:
    corners: Any = as_corners(boxes)  # type: ignore[arg-type]
    return corners
