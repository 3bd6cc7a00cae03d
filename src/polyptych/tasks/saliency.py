"""Saliency: what stands out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from polyptych import devices
from polyptych.errors import InputError
from polyptych.metrics._base import Metric
from polyptych.metrics.saliency import SaliencyF
from polyptych.ops.resize import resize
from polyptych.tasks._binary_map import BinaryMap, weighted_cross_entropy
from polyptych.types import LabelInfo, Loss


class Saliency(BinaryMap):
    """Balanced cross entropy, -[w y log s(x) + (1-w) (1-y) log(1 - s(x))] with w = (pixels that are not
    salient) / (all valid pixels) of the optimizer step, over all its micro-batches and processes (HED: Xie, Tu, ICCV
    2015, arXiv 1504.06375; ASTMT, survey: of the batch).
    ATRC and InvPT predict two channels with a softmax, which is the same function of their difference.

    If all pixels of a step are salient, or none, the balance makes the loss zero, as in the published code.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(BinaryMap.Config):
        weight: float | None = None
        """Weight of salient pixels in the loss, from 0 to 1 (default: balances the classes at every step)."""
        double_sigmoid: bool = False
        """Compute maxF like InvPT's code, which applies the sigmoid twice."""

    headline: ClassVar[str] = "maxF"
    higher_is_better: ClassVar[dict[str, bool]] = {name: name != "MAE" for name in SaliencyF.names}
    standard_weight: float = 5.0
    config: Config

    def __init__(self, config: Config, *, labels: LabelInfo):
        super().__init__(config, labels=labels)
        if config.weight is not None and not 0 <= config.weight <= 1:
            raise InputError("saliency.weight", str(config.weight), "a number from 0 to 1",
                             "leave it out to balance")

    def full_size_loss(self, prediction: Float[Tensor, "b 1 h w"], target: Float[Tensor, "b h w"],
                       valid: Bool[Tensor, "b h w"]) -> Loss:
        """Balanced cross entropy, summed over valid pixels."""
        return self.loss_in_step(prediction, target, valid, self.label_sums(target, valid))

    def label_sums(self, target: Float[Tensor, "b h w"], valid: Bool[Tensor, "b h w"]) -> Float[Tensor, " n"]:
        """Number of pixels that are not salient, and of all pixels."""
        if self.config.weight is not None:
            return super().label_sums(target, valid)
        return devices.widened(torch.stack([(valid & (target <= 0.5)).sum(), valid.sum()]))

    def loss_in_step(self, prediction: Float[Tensor, "b 1 hp wp"], target: Float[Tensor, "b h w"],
                     valid: Bool[Tensor, "b h w"], sums: Float[Tensor, " n"]) -> Loss:
        weight: float | Tensor | None = self.config.weight
        if weight is None:
            weight = (sums[0] / sums[1].clamp(min=1)).to(torch.float32)
        prediction = resize(prediction.float(), (valid.shape[-2], valid.shape[-1]))
        return Loss(weighted_cross_entropy(prediction, target, valid, weight), valid.sum())

    def metric(self) -> Metric:
        """See :class:`polyptych.metrics.saliency.SaliencyF`."""
        return SaliencyF(self.config.double_sigmoid)
