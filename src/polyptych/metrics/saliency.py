"""Saliency: the F-measures and the IoU of the multi-task literature, and the measures of salient object detection."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polyptych.metrics._base import Metric, histogram

BETA_SQUARED = 0.3
F_THRESHOLDS = range(1, 20)  # in twentieths: 0.05 .. 0.95
IOU_THRESHOLDS = range(4, 19)  # 0.20 .. 0.90
LEVELS = 256  # thresholds of salient object detection


class SaliencyF(Metric):
    """Five measures of a saliency map; all but ``MAE`` in percent, at the best threshold. Never compare one with
    another: for the same maps they differ by several points.

    ``maxF``: counts over all pixels of all images, salient where p >= t, t = 0.05, 0.10 .. 0.95;
    F = (1 + b) P R / (b P + R) with b = beta^2 = 0.3; maximum over t. This is ATRC's (Brüggemann et al., ICCV
    2021, arXiv 2104.13874) and what papers after it report (82-85 on PASCAL-Context).

    ``mIoU_per_image``: IoU of the salient region of every image (1 if both are empty), salient where p >
    t, t = 0.20, 0.25 .. 0.90; mean over images; maximum over t. This is ASTMT's (Maninis et al., CVPR 2019,
    arXiv 1904.08918) and the survey's (65-68), which read p from 8-bit files, whereas we do not round.

    ``maxF_beta1_per_image``: at the thresholds of that IoU, precision tp / (tp + fp) and recall tp / (tp + fn) of
    every image (0 where undefined), means over images, F = 2 P R / (P + R) of the means (beta^2 = 1); maximum over t.
    The code of ASTMT and the survey prints it next to the IoU.

    ``maxF_SOD`` is the maximal F-measure of salient object detection (Achanta et al., CVPR 2009; Borji et al., TIP
    2015, arXiv 1501.02741): every map is divided by its maximum, salient where it reaches t = 0/255, 1/255 .. 255/255;
    precision and recall of every image (0 where undefined), means over images, F of the means with beta^2 = 0.3;
    maximum over t.

    ``MAE``, from 0 to 1, lower is better, is the other measure of that field: the mean absolute difference between the
    unscaled map and the label of every image, then the mean over images.

    Args:
        double_sigmoid: apply a sigmoid to the probabilities once more before ``maxF``, as InvPT's code does:
            only thresholds 0.55 to 0.70 are then informative. For comparison with its numbers.
    """

    names = ("maxF", "mIoU_per_image", "maxF_beta1_per_image", "maxF_SOD", "MAE")

    def __init__(self, double_sigmoid: bool = False):
        super().__init__()
        self.double_sigmoid = double_sigmoid

    @property
    def options(self) -> dict[str, bool | float | str]:
        return {"double_sigmoid": self.double_sigmoid}

    def update(self, prediction: Float[Tensor, "b h w"], target: Float[Tensor, "b h w"],
               valid: Bool[Tensor, "b h w"]) -> None:
        true = target > 0.5
        p = prediction.float()
        passed = _passed(p.sigmoid() if self.double_sigmoid else p, F_THRESHOLDS, inclusive=True)
        hits, predicted = _cumulate(_per_image(passed, true, valid, len(F_THRESHOLDS)).sum(0))
        self.add(hits=hits, predicted=predicted, true=(true & valid).sum(), pixels=valid.sum())

        passed = _passed(p, IOU_THRESHOLDS, inclusive=False)
        hits, predicted = _cumulate(_per_image(passed, true, valid, len(IOU_THRESHOLDS)))
        salient = (true & valid).sum((1, 2))[:, None]
        union = predicted + salient - hits
        iou = torch.where(union > 0, hits / union.clamp(min=1).double(), 1)
        labelled = valid.any(2).any(1)
        # An image without a label has no hits, so its precision and recall add nothing even unmasked.
        self.add(iou=torch.where(labelled[:, None], iou, 0).sum(0), images=labelled.sum(),
                 precision=(hits / predicted.clamp(min=1).double()).sum(0),
                 recall=(hits / salient.clamp(min=1).double()).sum(0))
        self._add_measures_of_detection(prediction.double(), true, valid)

    def _add_measures_of_detection(self, p: Float[Tensor, "b h w"], true: Bool[Tensor, "b h w"],
                                   valid: Bool[Tensor, "b h w"]) -> None:
        difference = torch.where(valid, (p - true.double()).abs(), 0).sum((1, 2))
        highest = torch.where(valid, p, 0).amax((1, 2), keepdim=True) if valid.numel() else p.new_zeros(len(p), 1, 1)
        # The values of an 8-bit map equal the thresholds; rounding must not move them below.
        scaled = p / torch.where(highest > 0, highest, 1) * (LEVELS - 1)
        reached = (scaled + 1e-6).floor().clamp(0, LEVELS - 1).long() + 1  # the first threshold, 0, is always reached
        hits, predicted = _cumulate(_per_image(torch.where(valid, reached, 0), true, valid, LEVELS))
        salient = (true & valid).sum((1, 2))[:, None]
        self.add(difference=(difference / valid.sum((1, 2)).clamp(min=1)).sum(),
                 detection_precision=(hits / predicted.clamp(min=1).double()).sum(0),
                 detection_recall=(hits / salient.clamp(min=1).double()).sum(0))

    def compute(self) -> dict[str, float]:
        sums = {name: value.cpu().double() for name, value in self.sums.items()}
        nan = float("nan")
        if not sums or not sums["pixels"]:
            return dict.fromkeys(self.names, nan)
        # (1 + b) P R / (b P + R) without its divisions by zero.
        f = (1 + BETA_SQUARED) * sums["hits"] / (BETA_SQUARED * sums["true"] + sums["predicted"])
        precision, recall = sums["precision"] / sums["images"], sums["recall"] / sums["images"]
        smallest = torch.finfo(torch.float64).tiny
        f1 = 2 * precision * recall / (precision + recall).clamp(min=smallest)
        precision, recall = (sums[f"detection_{name}"] / sums["images"] for name in ("precision", "recall"))
        detection = (1 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall).clamp(min=smallest)
        return {"maxF": 100 * float(f.max()) if sums["true"] else nan,
                "mIoU_per_image": 100 * float((sums["iou"] / sums["images"]).max()),
                "maxF_beta1_per_image": 100 * float(f1.max()) if sums["true"] else nan,
                "maxF_SOD": 100 * float(detection.max()) if sums["true"] else nan,
                "MAE": float(sums["difference"] / sums["images"])}


def _passed(p: Float[Tensor, "b h w"], twentieths: range, inclusive: bool) -> Int[Tensor, "b h w"]:
    """How many thresholds a value reaches (``inclusive``) or exceeds."""
    # Computed in float64 on the device: a copy from the host would wait for the device.
    thresholds = torch.arange(twentieths.start, twentieths.stop, dtype=torch.float64, device=p.device) / 20
    return torch.bucketize(p.contiguous(), thresholds.float(), right=inclusive)


def _per_image(passed: Int[Tensor, "b h w"], true: Bool[Tensor, "b h w"], valid: Bool[Tensor, "b h w"],
               thresholds: int) -> Int[Tensor, "b 2 n"]:
    """Number of valid pixels per image, truth and number of thresholds passed."""
    images, levels = len(valid), thresholds + 1
    image = torch.arange(images, device=valid.device)[:, None, None]
    index = torch.where(valid, (image * 2 + true) * levels + passed, images * 2 * levels)
    return histogram(index, images * 2 * levels + 1)[:-1].view(images, 2, levels)


def _cumulate(counts: Int[Tensor, "*b 2 n"]) -> tuple[Int[Tensor, "*b t"], Int[Tensor, "*b t"]]:
    """True positives and predicted positives at every threshold."""
    at_least = counts.flip(-1).cumsum(-1).flip(-1)[..., 1:]
    return at_least[..., 1, :], at_least.sum(-2)
