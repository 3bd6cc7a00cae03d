"""Prediction heads and small blocks that several decoders share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from polyptych.errors import InputError, nearest
from polyptych.ops.winograd import Convolution3x3, together
from polyptych.tasks._base import resize
from polyptych.types import Features, FeatureSpec, TaskFeatures


class SingleValueBatchNorm(nn.BatchNorm2d):
    """BatchNorm that also accepts a single value per channel in training, where the variance is undefined: it then
    normalizes by the running statistics and does not update them."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class Head(nn.Module):
    """A pyramid in, one raw prediction out, in two steps: :meth:`gather` has no parameters, so tasks that share a
    pyramid share its result; ``forward`` takes that result.

    Args:
        spec: the pyramid.
        channels: channels of the prediction.
        width: inner channels; 0 means the published number.
    """

    def __init__(self, spec: FeatureSpec, channels: int, width: int = 0):
        super().__init__()

    @staticmethod
    def gather(features: Features) -> Tensor | tuple[Tensor, ...]:
        """The part of the head without parameters, from the pyramid."""
        return features.maps


def upsample_and_concatenate(maps: Sequence[Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b s h w"]:
    """All maps at the resolution of the first, stacked along the channels."""
    size = (maps[0].shape[-2], maps[0].shape[-1])
    return torch.cat([resize(x, size) for x in maps], dim=1)


def convolution(channels_in: int, channels_out: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    """Convolution without bias, BatchNorm, ReLU; keeps the resolution."""
    if kernel == 3 and dilation == 1:
        layer: nn.Conv2d = Convolution3x3(channels_in, channels_out, bias=False)
    else:
        layer = nn.Conv2d(channels_in, channels_out, kernel, padding=dilation * (kernel // 2), dilation=dilation,
                          bias=False)
    return nn.Sequential(layer, SingleValueBatchNorm(channels_out), nn.ReLU(inplace=True))


class FusedHead(Head):
    """HRNet's head: all scales at the finest resolution, concatenated, and two 1x1 convolutions.

    Wang et al., TPAMI 2020, arXiv 1908.07919 (HRNetV2). The published width is the sum of the pyramid's channels.
    """

    def __init__(self, spec: FeatureSpec, channels: int, width: int = 0):
        super().__init__(spec, channels, width)
        total = sum(spec.channels)
        width = width or total
        self.fuse = nn.Sequential(nn.Conv2d(total, width, 1), SingleValueBatchNorm(width), nn.ReLU(inplace=True))
        self.predict = nn.Conv2d(width, channels, 1)

    @staticmethod
    def gather(features: Features) -> Float[Tensor, "b s h w"]:
        return upsample_and_concatenate(features.maps)

    def forward(self, gathered: Float[Tensor, "b s h w"]) -> Float[Tensor, "b c h w"]:
        return self.predict(self.fuse(gathered))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: a 1x1 convolution, three dilated ones and the mean of the image, concatenated.

    Chen et al. 2017, arXiv 1706.05587 (DeepLabv3). The dilations are 12, 24, 36 at stride 8, as published, and cover
    the same area of the image at other strides (6, 12, 18 at stride 16). The published code cannot train with one image
    per device, because the image branch normalizes a single value; ours then uses the running statistics.
    """

    def __init__(self, channels: int, stride: int, width: int = 256):
        super().__init__()
        rates = [max(1, round(96 * k / stride)) for k in (1, 2, 3)]
        self.local = nn.ModuleList([convolution(channels, width, 1),
                                    *(convolution(channels, width, 3, dilation=rate) for rate in rates)])
        self.image = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, width, 1, bias=False),
                                   SingleValueBatchNorm(width), nn.ReLU(inplace=True))
        self.project = nn.Sequential(convolution(5 * width, width, 1), nn.Dropout(0.5))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        local = [branch(x) for branch in self.local]
        image = self.image(x).expand_as(local[0])  # bilinear upsampling of a single value
        return self.project(torch.cat([*local, image], dim=1))


class DeepLabHead(Head):
    """ASPP on the coarsest map, a 3x3 convolution, the prediction. Chen et al. 2017, arXiv 1706.05587; the
    published width is 256."""

    def __init__(self, spec: FeatureSpec, channels: int, width: int = 0):
        super().__init__(spec, channels, width)
        width = width or 256
        self.aspp = ASPP(spec.channels[-1], spec.strides[-1], width)
        self.refine = convolution(width, width, 3)
        self.predict = nn.Conv2d(width, channels, 1)

    @staticmethod
    def gather(features: Features) -> Float[Tensor, "b s h w"]:
        return features.maps[-1]

    def forward(self, gathered: Float[Tensor, "b s h w"]) -> Float[Tensor, "b c h w"]:
        return self.predict(self.refine(self.aspp(gathered)))


class FPNHead(Head):
    """A light feature pyramid network: lateral 1x1 convolutions, a top-down sum, 3x3 smoothing, and the sum of all
    scales at the finest one.

    Lin et al., CVPR 2017, arXiv 1612.03144, with the sum over scales of Kirillov et al., CVPR 2019, arXiv 1901.02446;
    one smoothing convolution per scale instead of a chain of them, BatchNorm instead of GroupNorm. Default width 128.
    """

    def __init__(self, spec: FeatureSpec, channels: int, width: int = 0):
        super().__init__(spec, channels, width)
        width = width or 128
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in spec.channels)
        self.smooth = nn.ModuleList(convolution(width, width, 3) for _ in spec.channels)
        self.predict = nn.Conv2d(width, channels, 1)

    def forward(self, gathered: tuple[Tensor, ...]) -> Float[Tensor, "b c h w"]:
        finest = (gathered[0].shape[-2], gathered[0].shape[-1])
        above, total = None, None
        for x, lateral, smooth in reversed(list(zip(gathered, self.lateral, self.smooth, strict=True))):
            x = lateral(x)
            above = x if above is None else x + resize(above, (x.shape[-2], x.shape[-1]))
            smoothed = resize(smooth(above), finest)
            total = smoothed if total is None else total + smoothed
        return self.predict(total)


class ConvolutionHead(Head):
    """All scales at the finest resolution, concatenated, a 3x3 convolution to a quarter of their channels (or
    ``width``), then the prediction: the plain heads against which ATRC (Brüggemann et al., ICCV 2021, arXiv 2104.13874)
    and DeMT report their gains."""

    def __init__(self, spec: FeatureSpec, channels: int, width: int = 0):
        super().__init__(spec, channels, width)
        total = sum(spec.channels)
        width = width or max(1, total // 4)
        self.mix = convolution(total, width, 3)
        self.predict = nn.Conv2d(width, channels, 1)
        for name, parameter in self.predict.named_parameters():
            nn.init.normal_(parameter, std=0.01 if name == "weight" else 0.0)

    @staticmethod
    def gather(features: Features) -> Float[Tensor, "b s h w"]:
        return upsample_and_concatenate(features.maps)

    def forward(self, gathered: Float[Tensor, "b s h w"]) -> Float[Tensor, "b c h w"]:
        return self.predict(self.mix(gathered))


class LinearHead(Head):
    """A 1x1 convolution of the coarsest map, or, with a width, a 3x3 convolution to that many channels and then the 1x1
    one, with nothing between: both are linear.

    Liu, Johns, Davison, CVPR 2019, arXiv 1803.10704: MTAN's SegNet predicts with width 64. Without width and averaged
    over the image, as the task ``classification`` does, it is global average pooling and a linear layer, the classifier
    of MTAN's WRN. (MTAN averages 8x8 of the 9x9 positions; here all are averaged.)
    """

    def __init__(self, spec: FeatureSpec, channels: int, width: int = 0):
        super().__init__(spec, channels, width)
        inside = width or spec.channels[-1]
        self.mix = Convolution3x3(spec.channels[-1], width) if width else nn.Identity()
        self.predict = nn.Conv2d(inside, channels, 1)
        if width:
            for name, parameter in self.named_parameters():  # as in MTAN's code
                (nn.init.xavier_normal_ if name.endswith("weight") else nn.init.zeros_)(parameter)

    @staticmethod
    def gather(features: Features) -> Float[Tensor, "b s h w"]:
        return features.maps[-1]

    def forward(self, gathered: Float[Tensor, "b s h w"]) -> Float[Tensor, "b c h w"]:
        return self.predict(self.mix(gathered))


class Fusion(nn.Module):
    """HRNetV2's fusion of a pyramid: all scales at the finest resolution, concatenated, one 1x1 convolution with bias,
    BatchNorm, ReLU. Wang et al., TPAMI 2020, arXiv 1908.07919. ``channels`` is the sum over the pyramid."""

    def __init__(self, spec: FeatureSpec):
        super().__init__()
        self.channels = sum(spec.channels)
        self.mix = nn.Sequential(nn.Conv2d(self.channels, self.channels, 1), SingleValueBatchNorm(self.channels),
                                 nn.ReLU(inplace=True))

    def forward(self, features: Features) -> Float[Tensor, "b s h w"]:
        return self.mix(upsample_and_concatenate(features.maps))


def residual(block: type[BasicBlock] | type[Bottleneck], channels_in: int, channels_out: int) -> nn.Module:
    """A residual block of He et al., CVPR 2016, arXiv 1512.03385, that keeps the resolution; the shortcut is a 1x1
    convolution with BatchNorm if the number of channels changes. A Bottleneck's output is 4 times its inner width, so
    ``channels_out`` must then be a multiple of 4."""
    shortcut = None
    if channels_in != channels_out:
        shortcut = nn.Sequential(nn.Conv2d(channels_in, channels_out, 1, bias=False),
                                 SingleValueBatchNorm(channels_out))
    return block(channels_in, channels_out // block.expansion, downsample=shortcut, norm_layer=SingleValueBatchNorm)


class BottleneckHead(nn.Module):
    """Two bottlenecks give a task's features, a 1x1 convolution its raw prediction from them: the initial and final
    heads of PAD-Net, PAP-Net and EMA-Net in the survey's code (Vandenhende et al., TPAMI 2021, arXiv 2004.13379).

    Args:
        width: channels of the features (published: 256 for initial heads), a multiple of 4.
        channels: channels of the prediction; if 0, only features are computed, and the prediction is None.
    """

    def __init__(self, channels_in: int, width: int, channels: int):
        super().__init__()
        self.refine = nn.Sequential(residual(Bottleneck, channels_in, width), residual(Bottleneck, width, width))
        self.predict = nn.Conv2d(width, channels, 1) if channels else None

    def forward(self, x: Float[Tensor, "b s h w"]) -> tuple[Float[Tensor, "b d h w"], Tensor | None]:
        features = self.refine(x)
        return features, None if self.predict is None else self.predict(features)


class Distillation(nn.Module):
    """Every target's features plus gated messages from the other tasks; 3x3 convolutions without bias.

    Xu, Ouyang, Wang, Sebe, CVPR 2018, arXiv 1805.04409 (PAD-Net, module C). With features F and one message
    convolution W_{ta} for every pair, target t becomes

        F_t + sum_{a != t} sigmoid(G_t * F_t) . (W_{ta} * F_a)       gate="target", PAD-Net: one gate for every target
        F_t + sum_{a != t} sigmoid(G_{ta} * F_a) . (W_{ta} * F_a)    gate="source", MTI-Net: one for every pair

    Args:
        targets: tasks that receive.
        sources: tasks that send; a task does not send to itself.
        width: channels of all features.
    """

    def __init__(self, targets: Sequence[str], sources: Sequence[str], width: int, gate: Literal["target", "source"]):
        super().__init__()

        def convolutions(names: Sequence[str]) -> nn.ModuleDict:
            return nn.ModuleDict({name: Convolution3x3(width, width, bias=False) for name in names})

        others = {target: [source for source in sources if source != target] for target in targets}
        self.gate_is_target = gate == "target"
        # Any: type checkers do not know what a container of containers holds.
        self.message: Any = nn.ModuleDict({target: convolutions(names) for target, names in others.items()})
        self.gate: Any = nn.ModuleDict({target: convolutions([target] if self.gate_is_target and names else names)
                                        for target, names in others.items()})

    def forward(self, features: dict[str, Float[Tensor, "b c h w"]]) -> dict[str, Float[Tensor, "b c h w"]]:
        """``features`` of all sources and targets; the result has the targets."""
        gates: dict[str, dict[str, Tensor]] = {target: {} for target in self.message}
        messages: dict[str, dict[str, Tensor]] = {target: {} for target in self.message}
        for name, x in features.items():  # all convolutions of one task's features run as one
            places = [(maps[target], layers[name]) for layer, maps in ((self.gate, gates), (self.message, messages))
                      for target, layers in layer.items() if name in layers]
            if places:
                for (maps, _), y in zip(places, together(x, [layer for _, layer in places]), strict=True):
                    maps[name] = y
        refined = {}
        for target, received in messages.items():
            if self.gate_is_target and received:
                received = {target: reduce(torch.add, received.values())}
            refined[target] = features[target]
            for name, message in received.items():
                refined[target] = torch.addcmul(refined[target], torch.sigmoid(gates[target][name]), message)
        return refined


def common_spec(features: dict[str, FeatureSpec], decoder: str) -> FeatureSpec:
    """The shape of the pyramid that all tasks have, for decoders that pass features from task to task.

    Raises:
        InputError: tasks have pyramids of different shapes.
    """
    first, *others = set(features.values())
    if others:
        got = "; ".join(f"{task}: channels {spec.channels}, strides {spec.strides}" for task, spec in features.items())
        raise InputError(f"decoder '{decoder}'", got, "pyramids of one shape for all tasks", "choose another encoder")
    return first


def for_each_pyramid(module: Callable[[Features], Any], features: TaskFeatures) -> dict[str, Any]:
    """``module`` applied to every task's pyramid, computed only once if tasks share it."""
    results, previous, result = {}, None, None
    for task, pyramid in features.items():
        if pyramid is not previous:
            previous, result = pyramid, module(pyramid)
        results[task] = result
    return results


def with_a_final_head(auxiliary: Sequence[str], tasks: Iterable[str]) -> tuple[str, ...]:
    """The tasks of a run without those that only help the others.

    Raises:
        InputError: an auxiliary task that the run does not have, or no task left besides them.
    """
    tasks = tuple(tasks)
    for task in auxiliary:
        if task not in tasks:
            raise InputError("decoder.auxiliary_tasks", f"'{task}'", nearest(task, tasks), "name tasks of this run")
    if rest := tuple(task for task in tasks if task not in auxiliary):
        return rest
    raise InputError("decoder.auxiliary_tasks", "every task", "a task that the others help", "name fewer")
