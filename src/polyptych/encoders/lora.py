"""LoRA: one frozen backbone for all tasks, with low-rank updates that they share.

Source: Hu et al., ICLR 2022, arXiv 2106.09685; options as in Hugging Face's peft
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from polyptych.backbones._base import Backbone
from polyptych.encoders._base import Encoder
from polyptych.encoders._low_rank import LowRankLinear, check_low_rank, freeze_weights, linear_layers
from polyptych.errors import InputError
from polyptych.types import TaskFeatures


class LoRA(Encoder):
    """W x + (alpha / rank) B A x in the linear layers that the targets name, with W frozen. All other pretrained
    weights are frozen too, except those that ``train`` names; a pyramid on the last map of a plain transformer is
    trained.

    `polyptych export` merges the updates into the weights: the file is as fast as one without them.

    Raises:
        InputError: no linear layer has such a name, or an option is out of range.
    """

    example = "test_vit"

    @dataclass(frozen=True, kw_only=True)
    class Config(Encoder.Config):
        rank: int = 8
        """Rank of the updates."""
        alpha: float = 8.0
        """Scale of the updates times their rank (times its square root with rslora)."""
        rslora: bool = False
        """Scale by alpha over the root of the rank (Kalajdzievski 2023, arXiv 2312.03732)."""
        dropout: float = 0.0
        """Dropout on the input of the updates."""
        targets: tuple[str, ...] = ("qkv", "q_proj", "k_proj", "v_proj", "proj")
        """Names of the linear layers to adapt: full names, or their last part."""
        pattern: str = ""
        """Regular expression for the full timm names of the layers to adapt, in place of targets; for
        example .*\\.attn\\.(qkv|proj)"""
        train: Literal["nothing", "norms", "biases"] = "nothing"
        """Which other pretrained weights are trained."""

    def __init__(self, config: Config, *, backbone: Backbone.Config, tasks: tuple[str, ...]):
        super().__init__()
        check_low_rank(config.rank, config.dropout)
        self.tasks = tasks
        self.backbone = backbone.build()
        self.spec = dict.fromkeys(tasks, self.backbone.spec)
        self.multiple, self.mean, self.std = self.backbone.multiple, self.backbone.mean, self.backbone.std
        freeze_weights(self.backbone.stages, backbone.freeze_until,
                       {"nothing": "", "norms": r"norm", "biases": r"bias$"}[config.train])
        scale = config.alpha / (math.sqrt(config.rank) if config.rslora else config.rank)
        try:
            found = list(linear_layers(self.backbone.stages, config.targets, config.pattern))
        except re.error as error:
            raise InputError("encoder.pattern", f"'{config.pattern}' ({error})", "a regular expression",
                             "fix the syntax of --encoder.pattern") from None
        if not found:
            got = f"'{config.pattern}'" if config.pattern else ", ".join(config.targets)
            raise InputError("encoder.pattern" if config.pattern else "encoder.targets",
                             f"{got}, which names no linear layer of this backbone",
                             "names of linear layers, such as qkv and proj in a transformer's attention",
                             "name layers of this backbone, or choose a transformer as --backbone.model")
        for parent, name, linear in found:
            setattr(parent, name, LowRankLinear(linear, config.rank, scale, config.dropout))

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> TaskFeatures:
        features = self.backbone(image)
        return TaskFeatures(dict.fromkeys(self.tasks, features), shared=features.maps)
