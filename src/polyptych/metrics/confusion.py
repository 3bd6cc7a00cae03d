"""Confusion matrix of class maps: mean IoU, pixel accuracy, mean class accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polyptych.metrics._base import Metric, histogram

Absent = Literal["skip", "nan", "zero"]


class ConfusionMatrix(Metric):
    """One confusion matrix over all valid pixels of all images; every result is in percent.

    ``mIoU`` is the mean over classes of TP / (TP + FP + FN), ``pixel_accuracy`` the share of valid pixels
    that are right, ``mean_accuracy`` the mean over the classes that occur of TP / (TP + FN).

    A label outside ``0 .. num_classes - 1`` is ignored even where ``valid`` is True; a prediction outside
    counts as a miss. Neither ever wraps into another class.

    Args:
        num_classes: number of classes, including the background if there is one.
        names: names of the classes for :meth:`breakdown`; their ids by default.
        absent: contribution to the mIoU of a class that is in no label and no prediction. ``skip`` leaves it
            out; ``nan`` makes the mean NaN (MTAN, CAGrad and LibMTL code); ``zero`` counts it as 0 (ASTMT,
            survey, ATRC and InvPT code). On a full test set every class occurs, so all three agree.
        require_tp: average only over classes with at least one true positive, as AdaShare's and AutoMTL's
            code does. This drops classes that are never hit, which inflates the number; only for comparison with
            theirs.
        union_unlabeled: predictions on unlabeled pixels count toward the union, as in MTAN's code of 2019 (with
            ``Averaged`` over images). Only for comparison with its numbers, and only if all labels have the same size,
            because padding is unlabeled too.
    """

    def __init__(self, num_classes: int, names: Sequence[str] = (), absent: Absent = "skip",
                 require_tp: bool = False, union_unlabeled: bool = False):
        super().__init__()
        self.num_classes, self.absent, self.require_tp = num_classes, absent, require_tp
        self.union_unlabeled = union_unlabeled
        self.ignores = f"pixels without a label, labels outside 0..{num_classes - 1}"
        self.names = tuple(names) or tuple(str(k) for k in range(num_classes))

    @property
    def options(self) -> dict[str, bool | float | str]:
        return {"absent": self.absent, "require_tp": self.require_tp, "union_unlabeled": self.union_unlabeled}

    def update(self, prediction: Int[Tensor, "b h w"], target: Int[Tensor, "b h w"],
               valid: Bool[Tensor, "b h w"]) -> None:
        k = self.num_classes
        # One more column for predictions outside the range, and one more bin for pixels that do not count.
        seen = valid & (target >= 0) & (target < k)
        column = torch.where((prediction >= 0) & (prediction < k), prediction.long(), k)
        index = torch.where(seen, target.long() * (k + 1) + column, k * (k + 1))
        self.add(confusion=histogram(index, k * (k + 1) + 1)[:-1].view(k, k + 1))
        if self.union_unlabeled:
            self.add(unlabeled=histogram(torch.where(seen, k, column), k + 1)[:-1])

    def compute(self) -> dict[str, float]:
        matrix, iou = self._matrix(), self._iou()
        if not bool(matrix.any()):
            return dict.fromkeys(("mIoU", "pixel_accuracy", "mean_accuracy"), float("nan"))
        hits, labelled = matrix.diagonal(), matrix.sum(1)
        if self.require_tp:
            iou = iou[hits > 0]
        elif self.absent == "skip":
            iou = iou[~iou.isnan()]
        elif self.absent == "zero":
            iou = iou.nan_to_num(0.0)
        recall = (hits / labelled)[labelled > 0]
        return {"mIoU": 100 * float(iou.mean()),
                "pixel_accuracy": 100 * float(hits.sum() / matrix.sum()),
                "mean_accuracy": 100 * float(recall.mean())}

    def breakdown(self) -> dict[str, float]:
        """IoU in percent by name of the class; NaN for a class that is in no label and no prediction."""
        return {name: 100 * float(value) for name, value in zip(self.names, self._iou(), strict=True)}

    def _matrix(self) -> Float[Tensor, "k k1"]:
        """Rows are labels, columns predictions, the last column predictions outside the range."""
        empty = torch.zeros(self.num_classes, self.num_classes + 1)
        return self.sums.get("confusion", empty).cpu().double()

    def _iou(self) -> Float[Tensor, k]:
        matrix = self._matrix()
        hits, predicted = matrix.diagonal(), matrix[:, :-1].sum(0)
        if "unlabeled" in self.sums:
            predicted = predicted + self.sums["unlabeled"].cpu()
        return hits / (matrix.sum(1) + predicted - hits)
