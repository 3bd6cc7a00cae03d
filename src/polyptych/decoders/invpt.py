"""InvPT: preliminary predictions, then a transformer over all tasks whose resolution rises from stage to stage.

Source: Ye, Xu, ECCV 2022, arXiv 2203.07997
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from timm.layers import trunc_normal_
from torch import Tensor, nn

from polyptych.decoders._base import Decoder
from polyptych.decoders._blocks import SingleValueBatchNorm, common_spec, convolution, for_each_pyramid
from polyptych.decoders._inverted_pyramid import COARSEST, EncoderFeatures, Stage, maps_of_stages
from polyptych.errors import InputError
from polyptych.ops.resize import resize
from polyptych.ops.winograd import Convolution3x3
from polyptych.types import Auxiliary, FeatureSpec, Output, TaskFeatures

PREDICTION_WIDTH = 64  # channels that the preliminary predictions add to a task's features


class InvPT(Decoder):
    """``final[task]`` has a quarter of the image's resolution, the preliminary predictions, which are auxiliary, 1/32.

    1. The coarsest map, resized to 1/32 of the image. Per task, two 3x3 convolutions compute preliminary features, a
       1x1 convolution makes a preliminary prediction, and another mixes the two.
    2. Stages at 1/32, 1/16 and 1/8 of the image, each half as wide as the one before: encoder features are added, all
       tasks' tokens attend to each other, and raw attention scores are passed from stage to stage
       (:class:`polyptych.decoders._inverted_pyramid.Stage`, which also states the cost of attention).
    3. The outputs of the stages are upsampled to 1/4 and added; a 3x3 convolution with BatchNorm and ReLU and a 1x1
       convolution per task make the predictions.

    A pyramid may have any maps: they go to the stages by their order (the paper's ViT gives four maps of stride 16,
    ``--backbone.vit-pyramid taps``), and mismatched resolutions are resampled, so images may have any size, whereas the
    published code needs multiples of 64.

    Differs from the published code in four options:

    - each head's scores are divided by the square root of its own width, not of the width of all heads together
      (``scale``);
    - the first stage gets encoder features too, through a convolution that the code contains but never calls
      (``encoder_features``);
    - stochastic depth follows the code's configuration, which an index in the code sets to zero (``drop_path``);
    - weights that the code contains but never uses are left out (``unused_weights``).

    ``invpt:scale=published:encoder_features=published:drop_path=0:unused_weights=true`` is that code, parameter by
    parameter.

    Raises:
        InputError: a bad option, or tasks whose pyramids differ in shape.
    """

    refines = True

    tuned = ("auxiliary_weight", (0.25, 0.5))

    @dataclass(frozen=True, kw_only=True)
    class Config(Decoder.Config):
        width: int = 512
        """Channels of a task's preliminary features. The first stage has 64 more, for the prediction that is appended;
        each further stage has half as many as the one before."""
        stages: int = 3
        """Number of stages, at 1/32, 1/16, 1/8 and 1/4 of the image resolution."""
        heads: int = 2
        """Number of attention heads."""
        encoder_features: Literal["all", "published", "none"] = "all"
        """Stages that receive encoder features: all, all but the first, or none."""
        message_passing: bool = True
        """Pass the attention scores of a stage on to the next one."""
        scale: Literal["head", "published"] = "head"
        """Divide a head's scores by the square root of its own width, or of the width of all heads together, as in the
        published code."""
        drop_path: float = 0.15
        """Probability that training skips a block for a sample; effectively 0 in the published code."""
        auxiliary_weight: float = 1.0
        """Weight of the loss on the preliminary predictions (0: they are not supervised)."""
        unused_weights: bool = False
        """Also keep, frozen, the weights that the published code contains but never uses, so that tensor names and
        parameter counts match."""

        def __post_init__(self) -> None:
            self.require("width", self.width >= 1, "1 or more")
            self.require("stages", 1 <= self.stages <= 4, "1 to 4")
            self.require("heads", self.heads >= 1, "1 or more")
            self.require("drop_path", 0 <= self.drop_path < 1, "a probability in [0, 1)")
            self.require("auxiliary_weight", 0 <= self.auxiliary_weight < float("inf"), "a number of at least 0")
            unit = self.heads * 2 ** (self.stages - 1)
            total = self.width + PREDICTION_WIDTH
            if missing := -total % unit:
                raise InputError("decoder.width", f"{self.width}, with {PREDICTION_WIDTH} more {total}",
                                 f"a multiple of {unit} in total, so that {self.heads} heads divide the width of each "
                                 f"of {self.stages} stages", f"use {self.width + missing}")

        def ablation(self) -> dict[str, Decoder.Config]:
            """The steps of the paper: the preliminary decoder with one transformer block at 1/32, the stages, message
            passing, encoder features; then the full decoder in the form of the published code."""
            whole = replace(self, encoder_features="all", message_passing=True)
            plain = replace(self, encoder_features="none", message_passing=False)
            return {
                "one stage": replace(plain, stages=1),
                "+ stages of rising resolution": plain,
                "+ message passing": replace(plain, message_passing=True),
                "+ encoder features": whole,
                "in the published form": replace(whole, encoder_features="published", scale="published", drop_path=0.0),
            }

    def __init__(self, config: Config, *, features: dict[str, FeatureSpec], channels: dict[str, int]):
        super().__init__()
        spec = common_spec(features, "invpt")
        self.stride, self.auxiliary_weight = spec.strides[-1], config.auxiliary_weight
        tasks, inside, total = tuple(channels), spec.channels[-1], config.width + PREDICTION_WIDTH
        self.preliminary = nn.ModuleDict({task: nn.Sequential(
            convolution(inside, inside, 3),
            convolution(inside, config.width, 3)) for task in tasks})
        self.initial = nn.ModuleDict({task: nn.Conv2d(config.width, c, 1) for task, c in channels.items()})
        self.mix = nn.ModuleDict({task: nn.Conv2d(config.width + c, total, 1) for task, c in channels.items()})
        indices = maps_of_stages(len(spec.strides), config.stages)
        widths = [total // 2**number for number in range(config.stages)]
        encoders = [_encoder_features(spec, number, indices, widths, config) for number in range(config.stages)]
        self.stages = nn.ModuleList(Stage(
            number, tasks, widths[max(number - 1, 0)], width, total, config.heads, config.drop_path, encoders[number],
            over="head" if config.scale == "head" else "all",
            receives=config.message_passing and number > 0,
            passes=config.message_passing and number < config.stages - 1) for number, width in enumerate(widths))
        self.join = nn.ModuleDict({task: nn.Sequential(
            Convolution3x3(total, total), SingleValueBatchNorm(total), nn.ReLU(inplace=True))
            for task in tasks})
        self.heads = nn.ModuleDict({task: nn.Conv2d(total, c, 1) for task, c in channels.items()})
        if config.unused_weights:
            self.unused = _unused(spec, indices, widths, tasks, config).requires_grad_(False)
        self.apply(_initialize)
        for layers in self.join.values():
            trunc_normal_(layers[0].weight, std=0.02)  # type: ignore[index]

    def forward(self, features: TaskFeatures) -> Output:
        height, width = (n * self.stride for n in next(iter(features.values())).maps[-1].shape[-2:])
        initial, maps = self._preliminary(features, _size(height, width, COARSEST))
        total: dict[str, Tensor] = {}
        message = None
        for number, stage in enumerate(self.stages):
            maps, outputs, message = stage(maps, features, _size(height, width, COARSEST >> number), message)
            for task, y in outputs.items():
                y = resize(y, _size(height, width, 4))
                total[task] = total[task] + y if number else y
        final = {task: self.heads[task](join(total[task])) for task, join in self.join.items()}
        return Output(final, [Auxiliary(initial, self.auxiliary_weight)] if self.auxiliary_weight else [])

    def _preliminary(self, features: TaskFeatures, size: tuple[int, int]) -> tuple[
            dict[str, Float[Tensor, "b _ h w"]], dict[str, Float[Tensor, "b c h w"]]]:
        """Every task's preliminary prediction, and its features mixed with the prediction."""
        coarse = for_each_pyramid(lambda pyramid: resize(pyramid.maps[-1], size), features)
        initial, mixed = {}, {}
        for task, layers in self.preliminary.items():
            x = layers(coarse[task])
            initial[task] = self.initial[task](x)
            mixed[task] = self.mix[task](torch.cat([x, initial[task]], dim=1))
        return initial, mixed


def _size(height: int, width: int, stride: int) -> tuple[int, int]:
    return -(-height // stride), -(-width // stride)


def _encoder_features(spec: FeatureSpec, number: int, indices: list[list[int]], widths: list[int],
                      config: InvPT.Config) -> EncoderFeatures | None:
    """The encoder features of a stage; None if it gets none."""
    left_out = config.encoder_features == "none" or (config.encoder_features == "published" and number == 0)
    if left_out or not indices[number]:
        return None
    return EncoderFeatures(spec, indices[number], COARSEST >> number, widths[number])


def _unused(spec: FeatureSpec, indices: list[list[int]], widths: list[int], tasks: tuple[str, ...],
            config: InvPT.Config) -> nn.ModuleDict:
    """Layers that the published code contains but never calls: in the first stage, the fusion of scores, 1x1
    convolutions and (unless used here) encoder features; and a LayerNorm as wide as that of the last stage."""
    parts: dict[str, nn.Module] = {
        "fuse": nn.Conv2d(2 * config.heads, config.heads, 1),
        "out": nn.ModuleDict({task: nn.Conv2d(widths[0], widths[0], 1) for task in tasks}),
        "norm": nn.LayerNorm(len(tasks) * widths[-1]),
    }
    if config.encoder_features == "published" and indices[0]:
        parts["encoder"] = EncoderFeatures(spec, indices[0], COARSEST, widths[0])
    return nn.ModuleDict(parts)


def _initialize(module: nn.Module) -> None:
    """Initialize linear layers from a truncated normal distribution with standard deviation 0.02, as published;
    convolutions and norms keep torch's defaults."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
