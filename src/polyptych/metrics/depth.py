"""Depth error: the standard definitions, accumulated over all valid pixels."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from polyptych.metrics._base import Metric, ratio


class DepthError(Metric):
    """Errors of a depth map ``p`` against the label ``y``, both in meters, over all valid pixels of all
    images.

    ``RMSE`` = sqrt(mean (p-y)^2) in meters; ``abs`` = mean \\|p-y\\| in meters; ``rel`` = mean \\|p-y\\|/y;
    ``sq_rel`` = mean (p-y)^2/y in meters; ``log_RMSE`` = sqrt(mean (ln y - ln p)^2); ``log10`` = mean
    \\|log10 y - log10 p\\|; ``delta1..3`` = percentage of pixels with max(p/y, y/p) < 1.25^k, strictly
    (Eigen, Puhrsch, Fergus, NeurIPS 2014, arXiv 1406.2283). ``y`` must be positive where valid. A prediction that is
    not positive counts as 1e-9 m in every number, as in the evaluation of ASTMT and the survey. Predictions of a run
    are never that small: the task decodes to 1 mm .. 1 km.
    """

    names = ("RMSE", "abs", "rel", "sq_rel", "log_RMSE", "log10", "delta1", "delta2", "delta3")

    def update(self, prediction: Float[Tensor, "b h w"], target: Float[Tensor, "b h w"],
               valid: Bool[Tensor, "b h w"]) -> None:
        # Masked pixels become a perfect prediction of 1 m, which adds nothing to any sum of errors.
        y = torch.where(valid, target, 1).double()
        p = torch.where(valid, prediction, 1).double().clamp(min=1e-9)
        error = (p - y).abs()
        log = p.log() - y.log()
        ratios = torch.maximum(p / y, y / p)
        self.add(count=valid.sum(), abs=error.sum(), rel=(error / y).sum(), squared=error.square().sum(),
                 sq_rel=(error.square() / y).sum(), log_squared=log.square().sum(),
                 log10=log.abs().sum() / math.log(10),
                 **{f"delta{k}": (valid & (ratios < 1.25**k)).sum() for k in (1, 2, 3)})

    def compute(self) -> dict[str, float]:
        if not self.sums:
            return dict.fromkeys(self.names, float("nan"))
        mean = {name: ratio(value, self.sums["count"]) for name, value in self.sums.items()}
        return {"RMSE": math.sqrt(mean["squared"]), "abs": mean["abs"], "rel": mean["rel"],
                "sq_rel": mean["sq_rel"], "log_RMSE": math.sqrt(mean["log_squared"]), "log10": mean["log10"],
                **{f"delta{k}": 100 * mean[f"delta{k}"] for k in (1, 2, 3)}}
